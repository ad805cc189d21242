/* What elements are like and how far they lie apart, in one pass: the compiled kernel of lazysd.counting.kernels.
 *
 * Elements become doubles a block at a time, in a core's nearest cache. Sums run in LANES lanes, so that they are
 * vectors without anybody reordering them; each piece of PIECE elements gives one row of sums, which the caller adds up
 * exactly. A piece with NaN or infinities in it is gone through once more, element by element.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <float.h>
#include <math.h>
#include <stdint.h>
#include <string.h>

enum { VERSION = 1, PIECE = 4096, LANES = 4, NUM_WORDS = 65536, NUM_BYTES = 256 };

typedef void (*Widen)(double *restrict, const void *, Py_ssize_t, const double *);

#define WIDEN(name, type, wide)                                                                                        \
    static void widen_##name(double *restrict to, const void *held, Py_ssize_t n, const double *table)                 \
    {                                                                                                                  \
        const type *from = held;                                                                                       \
        for (Py_ssize_t k = 0; k < n; k++) to[k] = wide;                                                               \
    }

static float as_float(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

/* Exponents are moved by multiplying, which subnormals survive; that of what is not finite becomes the largest. */
static float half(uint16_t bits)
{
    float magnitude = as_float((uint32_t)(bits & 0x7fff) << 13) * 0x1p112f;
    uint32_t odd = (bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
    return as_float(bits_of(magnitude) | odd | (uint32_t)(bits & 0x8000) << 16);
}

WIDEN(table, uint8_t, table[from[k]])
WIDEN(bf16, uint16_t, as_float((uint32_t)from[k] << 16))
WIDEN(f16, uint16_t, half(from[k]))
WIDEN(f32, float, from[k])
WIDEN(f64, double, from[k])
WIDEN(i16, int16_t, from[k])
WIDEN(u16, uint16_t, from[k])
WIDEN(i32, int32_t, from[k])
WIDEN(u32, uint32_t, from[k])
WIDEN(i64, int64_t, (double)from[k])
WIDEN(u64, uint64_t, (double)from[k])

static const struct {
    Widen widen;
    int itemsize;
} KINDS[] = {{widen_table, 1}, {widen_bf16, 2}, {widen_f16, 2}, {widen_f32, 4}, {widen_f64, 8}, {widen_i16, 2},
             {widen_u16, 2},   {widen_i32, 4},  {widen_u32, 4}, {widen_i64, 8}, {widen_u64, 8}};
enum { TABLE = 0, F32 = 3, NUM_KINDS = sizeof KINDS / sizeof *KINDS };

typedef double Pair __attribute__((vector_size(16)));
typedef int64_t Marks __attribute__((vector_size(16))); /* all bits of an element, or none */

static inline Pair pair_at(const double *x)
{
    Pair found;
    memcpy(&found, x, sizeof found);
    return found;
}

static inline Pair either(Marks which, Pair one, Pair other)
{
    return (Pair)((which & (Marks)one) | (~which & (Marks)other));
}

static inline Pair without_sign(Pair x) { return (Pair)((Marks)x & INT64_MAX); }

static inline double total(const Pair *x)
{
    Pair sum = x[0] + x[1];
    return sum[0] + sum[1];
}

/* Two pairs at a time, so that sums need not wait for each other. */
#define IN_PAIRS(n, body)                                                                                              \
    for (Py_ssize_t k = 0; k < (n); k += LANES)                                                                        \
        for (int p = 0; p < LANES / 2; p++) {                                                                          \
            body                                                                                                       \
        }

/* Fill up with an element that changes nothing, to whole lanes; how many there are then. */
static Py_ssize_t filled_up(double *x, Py_ssize_t n, double with)
{
    for (; n % LANES; n++) x[n] = with;
    return n;
}

/* The finite elements among n, moved to the front; what is not finite is counted. */
static Py_ssize_t finite_first(double *x, Py_ssize_t n, int64_t *num_nan, int64_t *num_inf)
{
    Py_ssize_t left = 0;
    for (Py_ssize_t k = 0; k < n; k++) {
        if (isfinite(x[k])) x[left++] = x[k];
        else if (isnan(x[k])) ++*num_nan;
        else ++*num_inf;
    }
    return left;
}

typedef struct {
    double low, high;
    int64_t zeros, nan, inf;
} Seen;

/* The upper half of each element as float32, the largest of which stands for all beyond. */
static void count_upper(const double *x, Py_ssize_t n, int64_t *counts)
{
    for (Py_ssize_t k = 0; k < n; k++) {
        double size = fabs(x[k]), near = size > FLT_MAX && size < INFINITY ? copysign(FLT_MAX, x[k]) : x[k];
        counts[bits_of((float)near) >> 16]++;
    }
}

static void count_floats(const uint32_t *x, Py_ssize_t n, int64_t *counts)
{
    for (Py_ssize_t k = 0; k < n; k++) counts[x[k] >> 16]++;
}

static double sum_of(const double *x, Py_ssize_t n)
{
    Pair sum[2] = {0};
    IN_PAIRS(n, sum[p] += pair_at(x + k + 2 * p);)
    return total(sum);
}

/* A row of three: how many elements are finite, their mean, the sum of squares of what is left of them. */
static void sum_piece(double *x, Py_ssize_t n, double *row, Seen *seen)
{
    Py_ssize_t whole = filled_up(x, n, 0);
    double sum = sum_of(x, whole);
    if (!isfinite(sum)) {
        n = finite_first(x, n, &seen->nan, &seen->inf);
        whole = filled_up(x, n, 0);
        sum = sum_of(x, whole);
    }
    row[0] = n, row[1] = n ? sum / n : 0, row[2] = 0;
    if (!n) return;
    filled_up(x, n, x[0]);
    const Pair mean = {row[1], row[1]};
    Pair low[2] = {pair_at(x), pair_at(x)}, high[2] = {low[0], low[0]}, away[2] = {0};
    Marks zeros[2] = {0};
    IN_PAIRS(whole, const Pair here = pair_at(x + k + 2 * p); const Pair left = here - mean;
             low[p] = either(here < low[p], here, low[p]); high[p] = either(here > high[p], here, high[p]);
             zeros[p] -= here == 0; away[p] += left * left;)
    for (int p = 0; p < LANES; p++) {
        seen->low = fmin(seen->low, low[p / 2][p % 2]);
        seen->high = fmax(seen->high, high[p / 2][p % 2]);
        seen->zeros += zeros[p / 2][p % 2];
    }
    double extra = (x[0] - row[1]) * (x[0] - row[1]);
    seen->zeros -= (whole - n) * (x[0] == 0);
    row[2] = total(away) - (whole - n) * extra;
}

typedef struct {
    double largest;
    int64_t changed, nan[2], inf[2], unlike;
} Apart;

/* Pairs of which one is not finite are counted and become two zeros. */
static void set_odd_apart(double *x, double *y, Py_ssize_t n, Apart *apart)
{
    for (Py_ssize_t k = 0; k < n; k++) {
        if (isfinite(x[k]) && isfinite(y[k])) continue;
        apart->nan[0] += isnan(x[k]) != 0, apart->nan[1] += isnan(y[k]) != 0;
        apart->inf[0] += isinf(x[k]) != 0, apart->inf[1] += isinf(y[k]) != 0;
        apart->unlike += x[k] != y[k] && !(isnan(x[k]) && isnan(y[k]));
        x[k] = y[k] = 0;
    }
}

static int64_t num_changed(const double *x, const double *y, Py_ssize_t n)
{
    Marks same[2] = {0};
    IN_PAIRS(n, const Pair a = pair_at(x + k + 2 * p); const Pair b = pair_at(y + k + 2 * p);
             same[p] -= (a == b) | ((a != a) & (b != b));)
    same[0] += same[1];
    return n - (same[0][0] + same[0][1]);
}

/* A row of four: squares of x, of y, of y - x; products of x and y. Both fill whole lanes. */
static void measure_piece(double *x, double *y, Py_ssize_t n, double *row, Apart *apart)
{
    for (int is_mended = 0;; is_mended = 1) {
        Pair a[2] = {0}, b[2] = {0}, d[2] = {0}, dot[2] = {0}, most[2] = {0};
        IN_PAIRS(n, const Pair one = pair_at(x + k + 2 * p); const Pair other = pair_at(y + k + 2 * p);
                 const Pair delta = other - one; const Pair size = without_sign(delta); a[p] += one * one;
                 b[p] += other * other; dot[p] += one * other; d[p] += delta * delta;
                 most[p] = either(size > most[p], size, most[p]);)
        row[0] = total(a), row[1] = total(b), row[2] = total(d), row[3] = total(dot);
        if (is_mended || (isfinite(row[0]) && isfinite(row[1]))) {
            for (int p = 0; p < LANES; p++) apart->largest = fmax(apart->largest, most[p / 2][p % 2]);
            return;
        }
        set_odd_apart(x, y, n, apart);
    }
}

/* The same of a tensor and itself. */
static void measure_alone(double *x, Py_ssize_t n, double *row, Apart *apart)
{
    for (int is_mended = 0;; is_mended = 1) {
        Pair a[2] = {0};
        n = filled_up(x, n, 0);
        IN_PAIRS(n, a[p] += pair_at(x + k + 2 * p) * pair_at(x + k + 2 * p);)
        row[0] = row[1] = row[3] = total(a), row[2] = 0;
        if (is_mended || isfinite(row[0])) return;
        n = finite_first(x, n, &apart->nan[0], &apart->inf[0]);
        apart->nan[1] = apart->nan[0], apart->inf[1] = apart->inf[0];
    }
}

/* How often each word stands among n. A count that has just been written has to be waited for: bytes take turns. */
static void count_bytes(const uint8_t *held, Py_ssize_t n, int64_t *counts)
{
    int64_t turns[4][NUM_BYTES] = {{0}};
    Py_ssize_t k = 0;
    for (; k + 4 <= n; k += 4)
        for (int turn = 0; turn < 4; turn++) turns[turn][held[k + turn]]++;
    for (; k < n; k++) turns[0][held[k]]++;
    for (k = 0; k < NUM_BYTES; k++) counts[k] += turns[0][k] + turns[1][k] + turns[2][k] + turns[3][k];
}

static void count_words(const uint16_t *held, Py_ssize_t n, int64_t *counts)
{
    for (Py_ssize_t k = 0; k < n; k++) counts[held[k]]++;
}

/* Buffers: what is read, what is written, and the table of an 8-bit type. */
static int is_unfit(const Py_buffer *held, Py_ssize_t least_nbytes, int itemsize)
{
    return held->len < least_nbytes || (uintptr_t)held->buf % itemsize != 0;
}

static int get_buffers(PyObject **objects, int count, int num_written, Py_buffer *held)
{
    for (int k = 0; k < count; k++) {
        held[k] = (Py_buffer){0};
        if (objects[k] == Py_None) continue;
        if (PyObject_GetBuffer(objects[k], &held[k], k < num_written ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
            while (k--) PyBuffer_Release(&held[k]);
            return 0;
        }
    }
    return 1;
}

static int let_go(Py_buffer *held, int count, const char *refused)
{
    for (int k = 0; k < count; k++) PyBuffer_Release(&held[k]);
    if (refused != NULL) PyErr_SetString(PyExc_ValueError, refused);
    return refused == NULL;
}

static Py_ssize_t pieces_of(Py_ssize_t n) { return n / PIECE + (n % PIECE != 0); }

static PyObject *count(PyObject *module, PyObject *args)
{
    PyObject *objects[2]; /* counts, words */
    Py_buffer held[2];
    int itemsize;
    if (!PyArg_ParseTuple(args, "OOi", &objects[0], &objects[1], &itemsize) || !get_buffers(objects, 2, 1, held))
        return NULL;
    const char *refused = NULL;
    if ((itemsize != 1 && itemsize != 2) || held[1].len % itemsize || is_unfit(&held[1], 0, itemsize))
        refused = "words are whole ones of 1 or 2 bytes";
    else if (is_unfit(&held[0], (itemsize == 1 ? NUM_BYTES : NUM_WORDS) * sizeof(int64_t), sizeof(int64_t)))
        refused = "there is not a count for every word";
    else {
        Py_BEGIN_ALLOW_THREADS
        if (itemsize == 1) count_bytes(held[1].buf, held[1].len, held[0].buf);
        else count_words(held[1].buf, held[1].len / 2, held[0].buf);
        Py_END_ALLOW_THREADS
    }
    if (!let_go(held, 2, refused)) return NULL;
    Py_RETURN_NONE;
}

static const char *refusal(int kind, const Py_buffer *held, const Py_buffer *table)
{
    if (kind < 0 || kind >= NUM_KINDS) return "elements of a kind that is not known";
    if (held->len % KINDS[kind].itemsize || is_unfit(held, 0, KINDS[kind].itemsize)) return "elements are whole ones";
    if (kind == TABLE && is_unfit(table, NUM_BYTES * sizeof(double), sizeof(double)))
        return "a table does not have a number for every byte";
    return NULL;
}

static PyObject *sums(PyObject *module, PyObject *args)
{
    PyObject *objects[3]; /* rows, counts, elements */
    Py_buffer held[3];
    int kind;
    if (!PyArg_ParseTuple(args, "OOOi", &objects[0], &objects[1], &objects[2], &kind) ||
        !get_buffers(objects, 3, 2, held))
        return NULL;
    const char *refused = kind == TABLE ? "bytes are counted" : refusal(kind, &held[2], NULL);
    Py_ssize_t n = refused == NULL ? held[2].len / KINDS[kind].itemsize : 0;
    if (refused == NULL && (is_unfit(&held[0], pieces_of(n) * 3 * sizeof(double), sizeof(double)) ||
                            is_unfit(&held[1], NUM_WORDS * sizeof(int64_t), sizeof(int64_t))))
        refused = "there is not a row for every piece, or not a count for every word";
    Seen seen = {INFINITY, -INFINITY, 0, 0, 0};
    if (refused == NULL) {
        Py_BEGIN_ALLOW_THREADS
        double x[PIECE], *row = held[0].buf;
        for (Py_ssize_t at = 0; at < n; at += PIECE, row += 3) {
            Py_ssize_t here = n - at < PIECE ? n - at : PIECE;
            const void *elements = (const char *)held[2].buf + at * KINDS[kind].itemsize;
            KINDS[kind].widen(x, elements, here, NULL);
            if (kind == F32) count_floats(elements, here, held[1].buf);
            else count_upper(x, here, held[1].buf);
            sum_piece(x, here, row, &seen);
        }
        Py_END_ALLOW_THREADS
    }
    if (!let_go(held, 3, refused)) return NULL;
    return Py_BuildValue("ddLLL", seen.low, seen.high, (long long)seen.zeros, (long long)seen.nan, (long long)seen.inf);
}

static PyObject *measure(PyObject *module, PyObject *args)
{
    PyObject *objects[5]; /* rows, elements and table of either side */
    Py_buffer held[5];
    int kinds[2];
    if (!PyArg_ParseTuple(args, "OOOiOOi", &objects[0], &objects[1], &objects[2], &kinds[0], &objects[3], &objects[4],
                          &kinds[1]) ||
        !get_buffers(objects, 5, 1, held))
        return NULL;
    const char *refused = refusal(kinds[0], &held[1], &held[2]);
    if (refused == NULL) refused = refusal(kinds[1], &held[3], &held[4]);
    Py_ssize_t n = refused == NULL ? held[1].len / KINDS[kinds[0]].itemsize : 0;
    if (refused == NULL && held[3].len / KINDS[kinds[1]].itemsize != n) refused = "the sides are not of one size";
    if (refused == NULL && is_unfit(&held[0], pieces_of(n) * 4 * sizeof(double), sizeof(double)))
        refused = "there is not a row for every piece";
    Apart apart = {0};
    if (refused == NULL) {
        Py_BEGIN_ALLOW_THREADS
        int is_one = held[1].buf == held[3].buf && kinds[0] == kinds[1] && held[2].buf == held[4].buf;
        double x[PIECE], y[PIECE], *row = held[0].buf;
        for (Py_ssize_t at = 0; at < n; at += PIECE, row += 4) {
            Py_ssize_t here = n - at < PIECE ? n - at : PIECE;
            KINDS[kinds[0]].widen(x, (const char *)held[1].buf + at * KINDS[kinds[0]].itemsize, here, held[2].buf);
            if (is_one) {
                measure_alone(x, here, row, &apart);
                continue;
            }
            KINDS[kinds[1]].widen(y, (const char *)held[3].buf + at * KINDS[kinds[1]].itemsize, here, held[4].buf);
            filled_up(y, here, 0);
            here = filled_up(x, here, 0);
            if (kinds[0] != kinds[1] || kinds[0] == TABLE) apart.changed += num_changed(x, y, here);
            measure_piece(x, y, here, row, &apart);
        }
        Py_END_ALLOW_THREADS
    }
    if (!let_go(held, 5, refused)) return NULL;
    return Py_BuildValue("dLLLLLL", apart.largest, (long long)apart.changed, (long long)apart.nan[0],
                         (long long)apart.nan[1], (long long)apart.inf[0], (long long)apart.inf[1],
                         (long long)apart.unlike);
}

static PyMethodDef METHODS[] = {
    {"count", count, METH_VARARGS, "count(counts, words, itemsize): see counting.kernels.compiled"},
    {"sums", sums, METH_VARARGS, "sums(rows, counts, elements, kind): see counting.kernels.compiled"},
    {"measure", measure, METH_VARARGS,
     "measure(rows, elements, table, kind, elements, table, kind): see counting.kernels.compiled"},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module)
{
    return PyModule_AddIntConstant(module, "VERSION", VERSION) < 0 ? -1
                                                                   : PyModule_AddIntConstant(module, "PIECE", PIECE);
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill_module}, {0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_count", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__count(void) { return PyModuleDef_Init(&MODULE); }
