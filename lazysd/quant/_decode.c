/* Codes of 4 or 8 bits times scales, rounded once: the compiled kernel of lazysd.quant.kernels.compiled.
 *
 * What shares a scale takes one of sixteen or 256 values. Where enough does, those are calculated and rounded first,
 * and what is left is looking up. A product of two floats is exact in double, so that rounding it to float is what
 * multiplying floats gives. Everything is checked before the first byte is written.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

enum { VERSION = 1, STRETCH = 64, TABLE_FROM = 512 }; /* bytes under one scale, from which a table of 256 saves more */

typedef struct { /* an axis of a weight: which of its indices are wanted, and how many share a scale */
    Py_ssize_t start, step, count, size;
} Axis;

typedef struct {
    Axis rows, columns;
    Py_ssize_t first_row, stop_row, first_column, stop_column; /* what is decoded of them, counted in wanted ones */
    Py_ssize_t per_word, word_nbytes; /* codes in a word; its bytes */
    Py_ssize_t pitch, unread;         /* bytes from one row of codes to the next; codes before the first word */
    const unsigned char *codes;
    const float *values; /* of the codes */
    const void *scales;  /* floats, or bytes that pick from `table` */
    const double *table;
    const float *zeros; /* to take from the values, one a scale; or NULL, and `zero` for all */
    float zero;
    uint32_t nan[2]; /* how the target spells the positive and the negative one */
} Request;

/* Of wanted indices: the one in the weight; the place of its block of `size` among those stored; how many share one. */
static Py_ssize_t index_of(const Axis *axis, Py_ssize_t k) { return axis->start + k * axis->step; }

static Py_ssize_t block_of(const Axis *axis, Py_ssize_t size, Py_ssize_t k)
{
    Py_ssize_t hop = axis->step > size && axis->step % size == 0 ? axis->step / size : 1;
    return (index_of(axis, k) / size - axis->start / size) / hop;
}

static Py_ssize_t blocks_of(const Axis *axis, Py_ssize_t size)
{
    return axis->count ? block_of(axis, size, axis->count - 1) + 1 : 0;
}

static Py_ssize_t run_of(const Axis *axis, Py_ssize_t k, Py_ssize_t stop)
{
    Py_ssize_t left = axis->size - index_of(axis, k) % axis->size, n = (left - 1) / axis->step + 1;
    return n < stop - k ? n : stop - k;
}

static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static uint32_t rounded_f32(float value) { return bits_of(value); }

static uint32_t rounded_bf16(float value)
{
    uint32_t bits = bits_of(value);
    return (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
}

static uint32_t rounded_f16(float value)
{
    uint32_t bits = bits_of(value), sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    uint32_t normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    float magnitude;
    memcpy(&magnitude, &size, sizeof size);
    uint32_t tiny = bits_of(magnitude + 0.5f) - 0x3f000000; /* floats from 0.5 on have the steps of subnormals */
    return sign | (size >= 0x47800000 ? 0x7c00 : size < 0x38800000 ? tiny : normal);
}

#if defined(__GNUC__)
#define KEPT_APART __attribute__((noinline))
#else
#define KEPT_APART
#endif

/* Look up nibbles, low ones first, in sixteen values of 16 bits: of `n` from a whole byte on, as many as fill vectors.
 * Returns how many those were. */
#if !defined(NO_VECTORS) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 12) && defined(__x86_64__)
#include <tmmintrin.h>
#define HAS_LOOKUP __builtin_cpu_supports("ssse3")
#define FOR_LOOKUP __attribute__((target("ssse3")))
#define LOOK_UP(table, at) (Bytes) _mm_shuffle_epi8((__m128i)(table), (__m128i)(at))
#elif !defined(NO_VECTORS) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 12) && defined(__aarch64__)
#include <arm_neon.h>
#define HAS_LOOKUP 1
#define FOR_LOOKUP
#define LOOK_UP(table, at) (Bytes) vqtbl1q_u8((uint8x16_t)(table), (uint8x16_t)(at))
#endif
#ifdef HAS_LOOKUP
#define ZIP_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
FOR_LOOKUP static Py_ssize_t look_up(char *to, const uint16_t *table, const unsigned char *codes, Py_ssize_t n)
{
    typedef uint8_t Bytes __attribute__((vector_size(16)));
    typedef uint64_t Words __attribute__((vector_size(16)));
    Bytes values[2], first, second;
    Py_ssize_t k = 0;
    memcpy(values, table, sizeof values);
    first = __builtin_shufflevector(values[0], values[1], EVEN); /* the first bytes of the values, and the second */
    second = __builtin_shufflevector(values[0], values[1], ODD);
    for (; k + 16 <= n; k += 16, codes += 8, to += 32) {
        uint64_t eight;
        memcpy(&eight, codes, sizeof eight);
        Bytes both = (Bytes)(Words){eight, 0}, at = __builtin_shufflevector(both & 15, both >> 4, ZIP_LOW);
        Bytes low = LOOK_UP(first, at), high = LOOK_UP(second, at);
        Bytes made[2] = {__builtin_shufflevector(low, high, ZIP_LOW), __builtin_shufflevector(low, high, ZIP_HIGH)};
        memcpy(to, made, sizeof made);
    }
    return k;
}
#else
#define HAS_LOOKUP 0
static Py_ssize_t look_up(char *to, const uint16_t *table, const unsigned char *codes, Py_ssize_t n) { return 0; }
#endif

/* Per type of the target: rounding; all products under one scale; looking up the nibbles of some columns; multiplying
 * bytes, one by one; a matrix of nibbles; one of bytes. What is kept apart becomes vectors. */
#define DECODE(name, type)                                                                                             \
    KEPT_APART static void round_##name(char *restrict to, const float *restrict made, Py_ssize_t n,                   \
                                        const uint32_t *restrict nan)                                                  \
    {                                                                                                                  \
        const uint32_t positive = nan[0], negative = nan[1];                                                           \
        for (Py_ssize_t k = 0; k < n; k++) {                                                                           \
            uint32_t spelt = bits_of(made[k]) >> 31 ? negative : positive;                                             \
            type one = (type)(made[k] != made[k] ? spelt : rounded_##name(made[k]));                                   \
            memcpy(to + k * (Py_ssize_t)sizeof one, &one, sizeof one);                                                 \
        }                                                                                                              \
    }                                                                                                                  \
    KEPT_APART static void products_##name(type *to, const Request *q, int n, float zero, double factor)               \
    {                                                                                                                  \
        float made[256], narrow = (float)factor;                                                                       \
        const float *values = q->values;                                                                               \
        if (narrow == factor)                                                                                          \
            for (int k = 0; k < n; k++) made[k] = (values[k] - zero) * narrow;                                         \
        else                                                                                                           \
            for (int k = 0; k < n; k++) made[k] = (float)((values[k] - zero) * factor);                                \
        round_##name((char *)to, made, n, q->nan);                                                                     \
    }                                                                                                                  \
    static inline void put_##name(char *to, Py_ssize_t at, type value)                                                 \
    {                                                                                                                  \
        memcpy(to + at * (Py_ssize_t)sizeof value, &value, sizeof value);                                              \
    }                                                                                                                  \
    static inline void pairs_##name(char *to, const type *table, const unsigned char *codes, Py_ssize_t at,            \
                                    Py_ssize_t n)                                                                      \
    {                                                                                                                  \
        Py_ssize_t k = 0;                                                                                              \
        codes += at / 2;                                                                                               \
        if (at % 2) put_##name(to, k++, table[*codes++ >> 4]);                                                         \
        if (sizeof(type) == 2 && HAS_LOOKUP) {                                                                         \
            Py_ssize_t done = look_up(to + 2 * k, (const uint16_t *)table, codes, n - k);                              \
            k += done, codes += done / 2;                                                                              \
        }                                                                                                              \
        for (; k + 1 < n; k += 2, codes++) {                                                                           \
            put_##name(to, k, table[*codes & 15]);                                                                     \
            put_##name(to, k + 1, table[*codes >> 4]);                                                                 \
        }                                                                                                              \
        if (k < n) put_##name(to, k, table[*codes & 15]);                                                              \
    }                                                                                                                  \
    static void scattered_##name(const Request *q, char *to, const type *table, const unsigned char *codes,            \
                                 Py_ssize_t j, Py_ssize_t n)                                                           \
    {                                                                                                                  \
        for (Py_ssize_t k = 0; k < n; k++) {                                                                           \
            Py_ssize_t place = index_of(&q->columns, j + k) % q->per_word;                                             \
            Py_ssize_t word = block_of(&q->columns, q->per_word, j + k);                                               \
            put_##name(to, k, table[codes[word * q->word_nbytes + place / 2] >> place % 2 * 4 & 15]);                  \
        }                                                                                                              \
    }                                                                                                                  \
    static void nibbles_##name(const Request *q, char *to, Py_ssize_t to_pitch)                                        \
    {                                                                                                                  \
        type tables[256][16];                                                                                          \
        unsigned char made[256] = {0};                                                                                 \
        const Axis axis = q->columns;                                                                                  \
        const Py_ssize_t blocks = blocks_of(&axis, axis.size), stop = q->stop_column;                                  \
        const unsigned char *bytes = q->table == NULL ? NULL : q->scales;                                              \
        for (Py_ssize_t i = q->first_row; i < q->stop_row; i++, to += to_pitch) {                                      \
            const unsigned char *codes = q->codes + i * q->pitch;                                                      \
            Py_ssize_t block = block_of(&q->rows, q->rows.size, i) * blocks;                                           \
            block += block_of(&axis, axis.size, q->first_column);                                                      \
            Py_ssize_t columns = run_of(&axis, q->first_column, stop), first_block = block;                            \
            char *into = to;                                                                                           \
            for (Py_ssize_t j = q->first_column; j < stop; j += columns, into += columns * (Py_ssize_t)sizeof(type)) { \
                if (block == first_block || axis.step > 1)                                                             \
                    columns = run_of(&axis, j, stop);                                                                  \
                else /* no division */                                                                                 \
                    columns = stop - j < axis.size ? stop - j : axis.size;                                             \
                int byte = bytes == NULL ? 0 : bytes[block];                                                           \
                if (!made[byte]) {                                                                                     \
                    products_##name(tables[byte], q, 16, q->zeros == NULL ? q->zero : q->zeros[block],                 \
                                    bytes == NULL ? ((const float *)q->scales)[block] : q->table[byte]);               \
                    made[byte] = bytes != NULL && q->zeros == NULL;                                                    \
                }                                                                                                      \
                if (axis.step == 1)                                                                                    \
                    pairs_##name(into, tables[byte], codes, axis.start + j - q->unread, columns);                      \
                else                                                                                                   \
                    scattered_##name(q, into, tables[byte], codes, j, columns);                                        \
                block += axis.step == 1 ? 1 : block_of(&axis, axis.size, j + columns) - block_of(&axis, axis.size, j); \
            }                                                                                                          \
        }                                                                                                              \
    }                                                                                                                  \
    /* `hop` is 1 where each column has a scale, 0 where all have the one that `factors` and `zeros` point to. */      \
    static void multiply_##name(const Request *q, char *to, const unsigned char *codes, Py_ssize_t n,                  \
                                const float *factors, const float *zeros, int hop)                                     \
    {                                                                                                                  \
        float made[STRETCH];                                                                                           \
        for (Py_ssize_t done = 0; done < n; done += STRETCH) {                                                         \
            int m = n - done < STRETCH ? (int)(n - done) : STRETCH;                                                    \
            for (int k = 0; k < m; k++) made[k] = q->values[codes[done + k]];                                          \
            if (hop && zeros != NULL)                                                                                  \
                for (int k = 0; k < m; k++) made[k] = (made[k] - zeros[done + k]) * factors[done + k];                 \
            else if (hop)                                                                                              \
                for (int k = 0; k < m; k++) made[k] = (made[k] - q->zero) * factors[done + k];                         \
            else                                                                                                       \
                for (int k = 0; k < m; k++) made[k] = (made[k] - *zeros) * *factors;                                   \
            round_##name(to + done * (Py_ssize_t)sizeof(type), made, m, q->nan);                                       \
        }                                                                                                              \
    }                                                                                                                  \
    static void bytes_##name(const Request *q, char *to, Py_ssize_t to_pitch)                                          \
    {                                                                                                                  \
        type table[256];                                                                                               \
        Py_ssize_t rows, columns, blocks = blocks_of(&q->columns, q->columns.size), stop = q->stop_column;             \
        for (Py_ssize_t i = q->first_row; i < q->stop_row; i += rows, to += rows * to_pitch) {                         \
            Py_ssize_t first_block = block_of(&q->rows, q->rows.size, i) * blocks;                                     \
            rows = run_of(&q->rows, i, q->stop_row);                                                                   \
            for (Py_ssize_t j = q->first_column; j < stop; j += columns) {                                             \
                int hop = q->columns.size == 1;                                                                        \
                Py_ssize_t block = first_block + block_of(&q->columns, q->columns.size, j);                            \
                columns = hop ? stop - j : run_of(&q->columns, j, stop);                                               \
                const float *factors = (const float *)q->scales + block;                                               \
                const float *zeros = q->zeros != NULL ? q->zeros + block : hop ? NULL : &q->zero;                      \
                char *into = to + (j - q->first_column) * (Py_ssize_t)sizeof(type);                                    \
                int is_looked_up = !hop && (rows >= TABLE_FROM || columns >= TABLE_FROM ||                             \
                                            rows * columns >= TABLE_FROM);                                             \
                if (is_looked_up) products_##name(table, q, 256, *zeros, *factors);                                    \
                for (Py_ssize_t k = 0; k < rows; k++, into += to_pitch) {                                              \
                    const unsigned char *codes = q->codes + (i + k) * q->pitch + j;                                    \
                    if (is_looked_up)                                                                                  \
                        for (Py_ssize_t n = 0; n < columns; n++) put_##name(into, n, table[codes[n]]);                 \
                    else                                                                                               \
                        multiply_##name(q, into, codes, columns, factors, zeros, hop);                                 \
                }                                                                                                      \
            }                                                                                                          \
        }                                                                                                              \
    }
DECODE(bf16, uint16_t)
DECODE(f16, uint16_t)
DECODE(f32, uint32_t)

typedef void (*Decode)(const Request *, char *, Py_ssize_t);
static const Decode DECODES[][2] = {
    {bytes_bf16, nibbles_bf16}, {bytes_f16, nibbles_f16}, {bytes_f32, nibbles_f32}};
static const Py_ssize_t ITEMSIZES[] = {2, 2, 4};

static int is_axis(const Axis *axis, Py_ssize_t first, Py_ssize_t stop)
{
    Py_ssize_t last;
    return axis->start >= 0 && axis->step > 0 && axis->size > 0 && 0 <= first && first <= stop && stop <= axis->count &&
           !__builtin_mul_overflow(axis->count, axis->step, &last) && !__builtin_add_overflow(last, axis->start, &last);
}

/* Whether `count` items of `itemsize` bytes are there, where such items may be. */
static int holds(const Py_buffer *held, Py_ssize_t count, Py_ssize_t itemsize)
{
    return held->len / itemsize >= count && (uintptr_t)held->buf % itemsize == 0;
}

static int meets(const Py_buffer *one, const Py_buffer *other)
{
    uintptr_t a = (uintptr_t)one->buf, b = (uintptr_t)other->buf;
    return a < b + other->len && b < a + one->len;
}

enum { TARGET, CODES, VALUES, SCALES, TABLE, ZEROS, NUM_BUFFERS };

/* Why not, or NULL; fills in what follows from the memory. `offset` and `pitch` of the target become bytes. */
static const char *refusal(Request *q, const Py_buffer *held, Py_ssize_t itemsize, Py_ssize_t *offset,
                           Py_ssize_t *pitch)
{
    if (!is_axis(&q->rows, q->first_row, q->stop_row) || !is_axis(&q->columns, q->first_column, q->stop_column))
        return "an axis is no range of indices, or what is wanted of it leaves it";
    if ((q->per_word != 1 && q->per_word != 2 && q->per_word != 8) || (q->per_word == 1 && q->table != NULL))
        return "a word holds 1, 2 or 8 codes, and scales may be bytes where it holds several";
    Py_ssize_t rows = q->stop_row - q->first_row, columns = q->stop_column - q->first_column, numel, last;
    if (*offset < 0 || *pitch < 0 || (rows > 1 && *pitch < columns)) return "rows of the target overlap";
    if (__builtin_mul_overflow(rows ? rows - 1 : 0, *pitch, &last) || __builtin_add_overflow(last, *offset, &last) ||
        __builtin_add_overflow(last, columns, &last) || last > held[TARGET].len / itemsize)
        return "the target reaches beyond its memory";
    *offset *= itemsize, *pitch *= itemsize;
    q->word_nbytes = q->per_word == 8 ? 4 : 1;
    q->unread = q->columns.start / q->per_word * q->per_word;
    if (__builtin_mul_overflow(blocks_of(&q->columns, q->per_word), q->word_nbytes, &q->pitch) ||
        __builtin_mul_overflow(q->pitch, q->rows.count, &numel) || held[CODES].len < numel)
        return "there are fewer codes than are wanted";
    Py_ssize_t blocks;
    if (__builtin_mul_overflow(blocks_of(&q->rows, q->rows.size), blocks_of(&q->columns, q->columns.size), &blocks) ||
        !holds(&held[SCALES], blocks, q->table == NULL ? sizeof(float) : 1) ||
        (q->zeros != NULL && !holds(&held[ZEROS], blocks, sizeof(float))))
        return "there are fewer scales or zero points than are wanted";
    if (!holds(&held[VALUES], q->per_word == 1 ? 256 : 16, sizeof(float)) ||
        (q->table != NULL && !holds(&held[TABLE], 256, sizeof(double))))
        return "a table does not have a number for every code";
    for (int k = CODES; k < NUM_BUFFERS; k++)
        if (meets(&held[TARGET], &held[k])) return "cannot decode into memory that is read meanwhile";
    return NULL;
}

static int get_buffers(PyObject **objects, Py_buffer *held)
{
    for (int k = 0; k < NUM_BUFFERS; k++) {
        held[k] = (Py_buffer){0};
        if ((k == TABLE || k == ZEROS) && objects[k] == Py_None) continue;
        if (PyObject_GetBuffer(objects[k], &held[k], k == TARGET ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
            while (k--) PyBuffer_Release(&held[k]);
            return 0;
        }
    }
    return 1;
}

static PyObject *decode(PyObject *module, PyObject *args)
{
    PyObject *objects[NUM_BUFFERS];
    Py_buffer held[NUM_BUFFERS];
    Request q = {0};
    Py_ssize_t offset, pitch;
    int kind;
    if (!PyArg_ParseTuple(args, "i(II)OnnOn(nnnn)(nn)(nnnn)(nn)OOOOf", &kind, &q.nan[0], &q.nan[1], &objects[TARGET],
                          &offset, &pitch, &objects[CODES], &q.per_word, &q.rows.start, &q.rows.step, &q.rows.count,
                          &q.rows.size, &q.first_row, &q.stop_row, &q.columns.start, &q.columns.step, &q.columns.count,
                          &q.columns.size, &q.first_column, &q.stop_column, &objects[VALUES], &objects[SCALES],
                          &objects[TABLE], &objects[ZEROS], &q.zero))
        return NULL;
    if (kind < 0 || kind > 2) {
        PyErr_SetString(PyExc_ValueError, "values are bfloat16 (0), float16 (1) or float32 (2)");
        return NULL;
    }
    if (!get_buffers(objects, held)) return NULL;
    q.codes = held[CODES].buf, q.values = held[VALUES].buf, q.scales = held[SCALES].buf;
    q.table = held[TABLE].obj == NULL ? NULL : held[TABLE].buf;
    q.zeros = held[ZEROS].obj == NULL ? NULL : held[ZEROS].buf;
    const char *refused;
    Py_BEGIN_ALLOW_THREADS
    refused = refusal(&q, held, ITEMSIZES[kind], &offset, &pitch);
    if (refused == NULL) DECODES[kind][q.per_word > 1](&q, (char *)held[TARGET].buf + offset, pitch);
    Py_END_ALLOW_THREADS
    for (int k = 0; k < NUM_BUFFERS; k++) PyBuffer_Release(&held[k]);
    if (refused != NULL) {
        PyErr_SetString(PyExc_ValueError, refused);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"decode", decode, METH_VARARGS,
     "decode(kind, nans, target, offset, pitch, codes, per_word, rows, wanted, columns, wanted, values, scales, table, "
     "zeros, zero): see quant.kernels.compiled"},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module) { return PyModule_AddIntConstant(module, "VERSION", VERSION); }

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill_module}, {0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_decode", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__decode(void) { return PyModuleDef_Init(&MODULE); }
