/* Codes of 4 or 8 bits times scales, rounded once: the compiled kernel of lazysd.quant.kernels.compiled.
 *
 * What shares a scale takes one of sixteen or 256 values. Where enough does, those are calculated and rounded first,
 * and what is left is looking up. A product of two floats is exact in double, so that rounding it to float is what
 * multiplying floats gives. Where columns of the target are not neighbours, small tiles are decoded into the cache and
 * turned from there. Everything is checked before the first byte is written.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <math.h>
#include "../move/_turn.h"

enum { VERSION = 2, STRETCH = 64, TABLE_FROM = 512 }; /* bytes under one scale, from which a table of 256 saves more */
enum { TILE_ROWS = 128, TILE_COLUMNS = 128, AHEAD = 16 }; /* AHEAD: rows whose codes are fetched early */
enum { BF16, F16, F32, BYTES }; /* types of targets and of scales; BYTES pick from a table */
enum { AS_THEY_ARE, TIMES_TOTAL, BY_TOTAL };

typedef struct { /* an axis of a weight: which of its indices are wanted, and how many share a scale */
    Py_ssize_t start, step, count, size;
} Slice;

typedef struct {
    Slice rows, columns;
    Py_ssize_t per_word, word_nbytes; /* codes in a word; its bytes */
    Py_ssize_t pitch, unread, blocks; /* bytes from one row of codes to the next; codes before the first word */
    const unsigned char *codes;
    const float *values; /* of the codes; NULL where these are the numbers themselves */
    const void *scales;
    int scale_kind, by_total; /* whether scales are multiplied by `total`, or divided */
    float total;
    const double *table;
    const float *zeros; /* to take from the values, one a scale; or NULL, and `zero` for all */
    float zero;
    uint32_t nan[2]; /* how the target spells the positive and the negative one */
} Request;

typedef struct { /* rows and columns, counted in wanted ones */
    Py_ssize_t row, stop_row, column, stop_column;
    int is_tile; /* of few columns: the next rows are elsewhere in memory */
} Box;

typedef struct { /* the sixteen values that nibbles take under one scale: one by one; and all their first bytes, … */
    unsigned char values[64], planes[4][16];
} Table;

typedef struct {
    Table of[256];
    unsigned char made[256];
} Tables;

/* Of wanted indices: the one in the weight; the place of its block of `size` among those stored; how many share one. */
static Py_ssize_t index_of(const Slice *axis, Py_ssize_t k) { return axis->start + k * axis->step; }

static Py_ssize_t block_of(const Slice *axis, Py_ssize_t size, Py_ssize_t k)
{
    Py_ssize_t hop = axis->step > size && axis->step % size == 0 ? axis->step / size : 1;
    return (index_of(axis, k) / size - axis->start / size) / hop;
}

static Py_ssize_t blocks_of(const Slice *axis, Py_ssize_t size)
{
    return axis->count ? block_of(axis, size, axis->count - 1) + 1 : 0;
}

static Py_ssize_t run_of(const Slice *axis, Py_ssize_t k, Py_ssize_t stop)
{
    Py_ssize_t left = axis->size - index_of(axis, k) % axis->size, n = (left - 1) / axis->step + 1;
    return n < stop - k ? n : stop - k;
}

#define ALWAYS_INLINE static inline __attribute__((always_inline))

/* Eight lanes, in as many registers as they take. What takes or returns them is always inlined: no call passes one. */
typedef float Floats __attribute__((vector_size(32)));
typedef uint32_t Bits __attribute__((vector_size(32)));
typedef int32_t Masks __attribute__((vector_size(32)));
typedef uint16_t Halves __attribute__((vector_size(16)));
enum { LANES = 8 };

ALWAYS_INLINE float float_of(uint32_t bits)
{
    float value;
    memcpy(&value, &bits, sizeof bits);
    return value;
}

ALWAYS_INLINE float widened_f16(uint16_t half)
{
    uint32_t size = half & 0x7fff, bits = (size << 13) + (size < 0x7c00 ? 0x38000000 : 0x70000000);
    float tiny = (float)size * 0x1p-24f, magnitude = size < 0x400 ? tiny : float_of(bits);
    return half & 0x8000 ? -magnitude : magnitude;
}

ALWAYS_INLINE Bits chosen(Bits mask, Bits one, Bits other) { return (one & mask) | (other & ~mask); }

ALWAYS_INLINE Bits rounded_bf16(Bits bits) { return (bits + 0x7fff + (bits >> 16 & 1)) >> 16; }

ALWAYS_INLINE Bits rounded_f16(Bits bits)
{
    Bits sign = bits >> 16 & 0x8000, size = bits & 0x7fffffff;
    Bits normal = (size - 0x38000000 + 0xfff + (size >> 13 & 1)) >> 13;
    Bits tiny = (Bits)((Floats)size + 0.5f) - 0x3f000000; /* floats from 0.5 on have the steps of subnormals */
    normal = chosen((Bits)(size < 0x38800000), tiny, normal);
    return sign | chosen((Bits)(size >= 0x47800000), (Bits){0} + 0x7c00, normal);
}

ALWAYS_INLINE int itemsize_of(int kind) { return kind == F32 ? 4 : 2; }

/* Eight values, rounded to even. */
ALWAYS_INLINE void put_rounded(char *to, const Floats *values, const Request *q, int kind)
{
    Bits bits = (Bits)*values, is_nan = (Bits)(*values != *values);
    Bits spelt = chosen((Bits)((Masks)bits >> 31), (Bits){0} + q->nan[1], (Bits){0} + q->nan[0]);
    if (kind != F32) bits = kind == BF16 ? rounded_bf16(bits) : rounded_f16(bits);
    bits = chosen(is_nan, spelt, bits);
    Halves halves = __builtin_convertvector(bits, Halves);
    if (kind == F32)
        memcpy(to, &bits, sizeof bits);
    else
        memcpy(to, &halves, sizeof halves);
}

/* All values that codes take under one scale. */
ALWAYS_INLINE void products(char *to, const Request *q, int n, float zero, double factor, int kind)
{
    const float narrow = (float)factor;
    for (int k = 0; k < n; k += LANES) {
        Floats made;
        memcpy(&made, q->values + k, sizeof made);
        if (narrow == factor)
            made = (made - zero) * narrow;
        else /* NaN, or 2 ** 128 */
            for (int lane = 0; lane < LANES; lane++) made[lane] = (float)((made[lane] - zero) * factor);
        put_rounded(to + k * itemsize_of(kind), &made, q, kind);
    }
}

/* Scales, every NaN spelt alike; `factors` of up to STRETCH neighbours. */
ALWAYS_INLINE float scaled(const Request *q, float factor)
{
    factor = factor != factor ? NAN : factor;
    return q->by_total == AS_THEY_ARE ? factor : q->by_total == BY_TOTAL ? factor / q->total : factor * q->total;
}

ALWAYS_INLINE float number(const void *numbers, int kind, Py_ssize_t k)
{
    if (kind == F32) return ((const float *)numbers)[k];
    uint16_t half = ((const uint16_t *)numbers)[k];
    return kind == BF16 ? float_of((uint32_t)half << 16) : widened_f16(half);
}

ALWAYS_INLINE double factor_of(const Request *q, Py_ssize_t block)
{
    if (q->scale_kind != BYTES) return scaled(q, number(q->scales, q->scale_kind, block));
    double picked = q->table[((const unsigned char *)q->scales)[block]];
    return q->by_total == AS_THEY_ARE ? picked : scaled(q, (float)picked);
}

ALWAYS_INLINE void factors_of(float *restrict to, const Request *q, Py_ssize_t block, int n)
{
    switch (q->scale_kind) {
    case F32: for (int k = 0; k < n; k++) to[k] = scaled(q, number(q->scales, F32, block + k)); break;
    case BF16: for (int k = 0; k < n; k++) to[k] = scaled(q, number(q->scales, BF16, block + k)); break;
    case F16: for (int k = 0; k < n; k++) to[k] = scaled(q, number(q->scales, F16, block + k)); break;
    default: for (int k = 0; k < n; k++) to[k] = (float)factor_of(q, block + k);
    }
}

/* Look up `n` nibbles from a whole byte on, low ones first, as many as fill vectors. Returns how many those were. */
typedef Py_ssize_t (*LookUp)(char *, const Table *, const unsigned char *, Py_ssize_t, int);

ALWAYS_INLINE Py_ssize_t look_up_none(char *to, const Table *table, const unsigned char *codes, Py_ssize_t n, int itemsize)
{
    return 0;
}

#if !defined(NO_VECTORS) && (defined(__clang__) || __GNUC__ >= 12) && defined(__x86_64__)
#include <immintrin.h>
#define IS_FAST __builtin_cpu_supports("avx2")
#define FAST __attribute__((target("avx2")))
#define PICK(table, at) (Bytes) _mm_shuffle_epi8((__m128i)(table), (__m128i)(at))
#elif !defined(NO_VECTORS) && (defined(__clang__) || __GNUC__ >= 12) && defined(__aarch64__) && !defined(__AARCH64EB__)
#include <arm_neon.h>
#define IS_FAST 1
#define FAST
#define PICK(table, at) (Bytes) vqtbl1q_u8((uint8x16_t)(table), (uint8x16_t)(at))
#else
#define IS_FAST 0
#define FAST
#define look_up_many look_up_none
ALWAYS_INLINE void split(Table *table, int itemsize) {}
#endif
#ifdef PICK
typedef uint8_t Bytes __attribute__((vector_size(16)));
typedef uint64_t Words __attribute__((vector_size(16)));
#define EVEN 0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30
#define ODD 1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21, 23, 25, 27, 29, 31
ALWAYS_INLINE void split(Table *table, int itemsize)
{
    Bytes values[4], planes[4];
    memcpy(values, table->values, 16 * itemsize);
    if (itemsize == 4) { /* the even bytes of all values, then the odd ones */
        planes[0] = __builtin_shufflevector(values[0], values[1], EVEN);
        planes[1] = __builtin_shufflevector(values[2], values[3], EVEN);
        planes[2] = __builtin_shufflevector(values[0], values[1], ODD);
        planes[3] = __builtin_shufflevector(values[2], values[3], ODD);
        memcpy(values, planes, sizeof values);
    }
    for (int k = 0; k < itemsize / 2; k++) {
        planes[k] = __builtin_shufflevector(values[2 * k], values[2 * k + 1], EVEN);
        planes[k + itemsize / 2] = __builtin_shufflevector(values[2 * k], values[2 * k + 1], ODD);
    }
    memcpy(table->planes, planes, 16 * itemsize);
}

FAST ALWAYS_INLINE Py_ssize_t look_up_many(char *to, const Table *table, const unsigned char *codes, Py_ssize_t n,
                                           int itemsize)
{
    Bytes planes[4], made[4];
    Py_ssize_t k = 0;
    memcpy(planes, table->planes, 16 * itemsize);
    for (; k + 16 <= n; k += 16, codes += 8, to += 16 * itemsize) {
        uint64_t eight;
        memcpy(&eight, codes, sizeof eight);
        Bytes both = (Bytes)(Words){eight, 0}, at = __builtin_shufflevector(both & 15, both >> 4, ZIP1_LOW);
        for (int half = 0; half < itemsize; half += 2) { /* of each value */
            Bytes first = PICK(planes[half], at), second = PICK(planes[half + 1], at);
            made[half] = __builtin_shufflevector(first, second, ZIP1_LOW);
            made[half + 1] = __builtin_shufflevector(first, second, ZIP1_HIGH);
        }
        if (itemsize == 4) {
            Halves low[2] = {(Halves)made[0], (Halves)made[1]}, high[2] = {(Halves)made[2], (Halves)made[3]};
            for (int side = 0; side < 2; side++) {
                made[2 * side] = (Bytes)__builtin_shufflevector(low[side], high[side], ZIP2_LOW);
                made[2 * side + 1] = (Bytes)__builtin_shufflevector(low[side], high[side], ZIP2_HIGH);
            }
        }
        memcpy(to, made, 16 * itemsize);
    }
    return k;
}
#endif

/* The table of a block: one that is kept, where bytes pick scales and nothing else differs from block to block. */
ALWAYS_INLINE const Table *table_of(const Request *q, Tables *tables, Py_ssize_t block, int kind, LookUp look_up)
{
    int kept = q->scale_kind == BYTES && q->zeros == NULL;
    int at = kept ? ((const unsigned char *)q->scales)[block] : 0;
    Table *table = &tables->of[at];
    if (kept && tables->made[at]) return table;
    tables->made[at] = 1;
    products((char *)table->values, q, 16, q->zeros == NULL ? q->zero : q->zeros[block], factor_of(q, block), kind);
    if (look_up != look_up_none) split(table, itemsize_of(kind));
    return table;
}

ALWAYS_INLINE void put(char *to, const Table *table, int code, int itemsize)
{
    memcpy(to, table->values + code * itemsize, itemsize);
}

ALWAYS_INLINE void pairs(char *to, const Table *table, const unsigned char *codes, Py_ssize_t at, Py_ssize_t n,
                         int itemsize, LookUp look_up)
{
    Py_ssize_t k = 0;
    codes += at / 2;
    if (at % 2) put(to + itemsize * k++, table, *codes++ >> 4, itemsize);
    Py_ssize_t done = look_up(to + itemsize * k, table, codes, n - k, itemsize);
    k += done, codes += done / 2;
    for (; k + 1 < n; k += 2, codes++) {
        put(to + itemsize * k, table, *codes & 15, itemsize);
        put(to + itemsize * (k + 1), table, *codes >> 4, itemsize);
    }
    if (k < n) put(to + itemsize * k, table, *codes & 15, itemsize);
}

static void scattered(const Request *q, char *to, const Table *table, const unsigned char *codes, Py_ssize_t j,
                      Py_ssize_t n, int itemsize)
{
    for (Py_ssize_t k = 0; k < n; k++) {
        Py_ssize_t place = index_of(&q->columns, j + k) % q->per_word;
        Py_ssize_t word = block_of(&q->columns, q->per_word, j + k);
        put(to + itemsize * k, table, codes[word * q->word_nbytes + place / 2] >> place % 2 * 4 & 15, itemsize);
    }
}

ALWAYS_INLINE void nibbles(const Request *q, Tables *tables, char *to, Py_ssize_t pitch, Box box, int kind,
                           LookUp look_up)
{
    const Slice axis = q->columns;
    const int itemsize = itemsize_of(kind), is_even = axis.step == 1;
    const Py_ssize_t first_block = block_of(&axis, axis.size, box.column); /* divisions, not for each row again */
    const Py_ssize_t first_run = run_of(&axis, box.column, box.stop_column);
    for (Py_ssize_t i = box.row; i < box.stop_row; i++, to += pitch) {
        const unsigned char *codes = q->codes + i * q->pitch;
        if (box.is_tile && i + AHEAD < q->rows.count)
            __builtin_prefetch(codes + AHEAD * q->pitch + (axis.start + box.column - q->unread) / 2);
        Py_ssize_t block = (q->rows.size == 1 ? i : block_of(&q->rows, q->rows.size, i)) * q->blocks + first_block;
        Py_ssize_t left = box.stop_column - box.column, n = first_run;
        char *into = to;
        for (Py_ssize_t j = box.column; left > 0; j += n, left -= n, into += n * itemsize) {
            if (j > box.column) n = !is_even ? run_of(&axis, j, box.stop_column) : left < axis.size ? left : axis.size;
            const Table *table = table_of(q, tables, block, kind, look_up);
            if (is_even)
                pairs(into, table, codes, axis.start + j - q->unread, n, itemsize, look_up);
            else
                scattered(q, into, table, codes, j, n, itemsize);
            block += is_even ? 1 : block_of(&axis, axis.size, j + n) - block_of(&axis, axis.size, j);
        }
    }
}

/* Bytes, one by one. `hop` is 1 where each column has a scale, 0 where all have that of `block`. */
ALWAYS_INLINE void multiply(const Request *q, char *to, const unsigned char *codes, Py_ssize_t n, Py_ssize_t block,
                            int hop, int kind)
{
    float values[STRETCH], zeros[STRETCH], factors[STRETCH];
    char rounded[STRETCH * 4];
    const float zero = q->zeros == NULL ? q->zero : q->zeros[block], factor = hop ? 0 : (float)factor_of(q, block);
    for (int k = 0; k < STRETCH; k++) zeros[k] = zero, factors[k] = factor, values[k] = 0;
    for (Py_ssize_t done = 0; done < n; done += STRETCH) {
        const int m = n - done < STRETCH ? (int)(n - done) : STRETCH;
        if (q->values == NULL)
            for (int k = 0; k < m; k++) values[k] = codes[done + k];
        else
            for (int k = 0; k < m; k++) values[k] = q->values[codes[done + k]];
        if (hop) factors_of(factors, q, block + done, m);
        if (hop && q->zeros != NULL) memcpy(zeros, q->zeros + block + done, m * sizeof *zeros);
        for (int k = 0; k < m; k += LANES) {
            Floats made, zero_points, numbers;
            memcpy(&made, values + k, sizeof made);
            memcpy(&zero_points, zeros + k, sizeof made);
            memcpy(&numbers, factors + k, sizeof made);
            made = (made - zero_points) * numbers;
            put_rounded(rounded + k * itemsize_of(kind), &made, q, kind);
        }
        memcpy(to + done * itemsize_of(kind), rounded, m * itemsize_of(kind));
    }
}

ALWAYS_INLINE void bytes(const Request *q, char *to, Py_ssize_t pitch, Box box, int kind)
{
    char table[256 * 4];
    const int hop = q->columns.size == 1, itemsize = itemsize_of(kind);
    Py_ssize_t rows, columns;
    for (Py_ssize_t i = box.row; i < box.stop_row; i += rows, to += rows * pitch) {
        Py_ssize_t first_block = block_of(&q->rows, q->rows.size, i) * q->blocks;
        rows = run_of(&q->rows, i, box.stop_row);
        for (Py_ssize_t j = box.column; j < box.stop_column; j += columns) {
            Py_ssize_t block = first_block + block_of(&q->columns, q->columns.size, j);
            columns = hop ? box.stop_column - j : run_of(&q->columns, j, box.stop_column);
            char *into = to + (j - box.column) * itemsize;
            int is_looked_up = q->values != NULL && !hop && (rows >= TABLE_FROM || columns >= TABLE_FROM || rows * columns >= TABLE_FROM);
            if (is_looked_up)
                products(table, q, 256, q->zeros == NULL ? q->zero : q->zeros[block], (float)factor_of(q, block), kind);
            for (Py_ssize_t k = 0; k < rows; k++, into += pitch) {
                const unsigned char *codes = q->codes + (i + k) * q->pitch + j;
                if (is_looked_up)
                    for (Py_ssize_t n = 0; n < columns; n++)
                        memcpy(into + n * itemsize, table + codes[n] * itemsize, itemsize);
                else
                    multiply(q, into, codes, columns, block, hop, kind);
            }
        }
    }
}

/* Rows of dense columns: for each type of a target, for processors with wide vectors and for any. */
typedef void (*Decode)(const Request *, Tables *, char *, Py_ssize_t, Box);
#define DECODE(name, kind, attribute, look_up)                                                                         \
    attribute static void name(const Request *q, Tables *tables, char *to, Py_ssize_t pitch, Box box)                  \
    {                                                                                                                  \
        if (q->per_word > 1)                                                                                           \
            nibbles(q, tables, to, pitch, box, kind, look_up);                                                         \
        else                                                                                                           \
            bytes(q, to, pitch, box, kind);                                                                            \
    }
DECODE(fast_bf16, BF16, FAST, look_up_many)
DECODE(fast_f16, F16, FAST, look_up_many)
DECODE(fast_f32, F32, FAST, look_up_many)
DECODE(plain_bf16, BF16, , look_up_none)
DECODE(plain_f16, F16, , look_up_none)
DECODE(plain_f32, F32, , look_up_none)
static const Decode DECODES[2][3] = {{plain_bf16, plain_f16, plain_f32}, {fast_bf16, fast_f16, fast_f32}};

static void decode_all(const Request *q, char *to, const Py_ssize_t *steps, int kind)
{
    char tile[TILE_ROWS * TILE_COLUMNS * 4];
    Tables tables;
    const int itemsize = itemsize_of(kind);
    const Decode decode = DECODES[IS_FAST ? 1 : 0][kind];
    memset(tables.made, 0, sizeof tables.made);
    if (steps[1] == itemsize) {
        decode(q, &tables, to, steps[0], (Box){0, q->rows.count, 0, q->columns.count, 0});
        return;
    }
    for (Py_ssize_t j = 0, stop_j; j < q->columns.count; j = stop_j) {
        stop_j = q->columns.count - j < TILE_COLUMNS ? q->columns.count : j + TILE_COLUMNS;
        const int n = (int)(stop_j - j);
        for (Py_ssize_t i = 0, stop_i; i < q->rows.count; i = stop_i) {
            stop_i = q->rows.count - i < TILE_ROWS ? q->rows.count : i + TILE_ROWS;
            const int m = (int)(stop_i - i);
            char *corner = to + i * steps[0] + j * steps[1];
            decode(q, &tables, tile, (Py_ssize_t)n * itemsize, (Box){i, stop_i, j, stop_j, 1});
            if (steps[0] == itemsize)
                TILES[itemsize](corner, steps[1], tile, (Py_ssize_t)n * itemsize, m, n);
            else
                for (int k = 0; k < m; k++)
                    ROWS[itemsize](corner + k * steps[0], steps[1], tile + (Py_ssize_t)k * n * itemsize, itemsize, n);
        }
    }
}

static int is_axis(const Slice *axis)
{
    Py_ssize_t last;
    return axis->start >= 0 && axis->step > 0 && axis->count >= 0 && axis->size > 0 &&
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

/* Why a target is none, or NULL: an offset and two steps, in elements, which become bytes. */
static const char *no_target(const Request *q, const Py_buffer *held, int itemsize, Py_ssize_t *offset,
                             Py_ssize_t *steps)
{
    Py_ssize_t counts[2] = {q->rows.count, q->columns.count}, reach[2], last;
    for (int k = 0; k < 2; k++) {
        if (counts[k] == 1) steps[k] = 1; /* a step that nobody takes */
        if (*offset < 0 || steps[k] < 0 || __builtin_mul_overflow(counts[k] - 1, steps[k], &reach[k]))
            return "the target reaches beyond its memory";
    }
    if (__builtin_add_overflow(reach[0], reach[1], &last) || __builtin_add_overflow(last, *offset, &last) ||
        last >= held->len / itemsize)
        return "the target reaches beyond its memory";
    int inner = steps[1] > steps[0] && counts[0] > 1 ? 0 : 1;
    if ((counts[inner] > 1 && steps[inner] < 1) || (counts[!inner] > 1 && steps[!inner] <= reach[inner]))
        return "rows of the target overlap";
    *offset *= itemsize, steps[0] *= itemsize, steps[1] *= itemsize;
    return NULL;
}

/* Why not, or NULL; fills in what follows from the memory. */
static const char *refusal(Request *q, const Py_buffer *held)
{
    static const Py_ssize_t widths[] = {2, 2, 4, 1};
    if ((q->per_word != 1 && q->per_word != 2 && q->per_word != 8) || (q->scale_kind == BYTES && q->table == NULL))
        return "a word holds 1, 2 or 8 codes, and scales that are bytes need a table";
    q->word_nbytes = q->per_word == 8 ? 4 : 1;
    q->unread = q->columns.start / q->per_word * q->per_word;
    q->blocks = blocks_of(&q->columns, q->columns.size);
    Py_ssize_t numel, blocks;
    if (__builtin_mul_overflow(blocks_of(&q->columns, q->per_word), q->word_nbytes, &q->pitch) ||
        __builtin_mul_overflow(q->pitch, q->rows.count, &numel) || held[CODES].len < numel)
        return "there are fewer codes than are wanted";
    if (__builtin_mul_overflow(blocks_of(&q->rows, q->rows.size), q->blocks, &blocks) ||
        !holds(&held[SCALES], blocks, widths[q->scale_kind]) ||
        (q->zeros != NULL && !holds(&held[ZEROS], blocks, sizeof(float))))
        return "there are fewer scales or zero points than are wanted";
    if ((q->values == NULL ? q->per_word > 1 : !holds(&held[VALUES], q->per_word == 1 ? 256 : 16, sizeof(float))) ||
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
        if ((k == VALUES || k == TABLE || k == ZEROS) && objects[k] == Py_None) continue;
        if (PyObject_GetBuffer(objects[k], &held[k], k == TARGET ? PyBUF_WRITABLE : PyBUF_SIMPLE) < 0) {
            while (k--) PyBuffer_Release(&held[k]);
            return 0;
        }
    }
    return 1;
}

/* Why not, or NULL where it has decoded. */
static const char *decoded(Request *q, const Py_buffer *held, int kind, Py_ssize_t offset, Py_ssize_t *steps)
{
    if (!is_axis(&q->rows) || !is_axis(&q->columns)) return "an axis is no range of indices";
    if (q->rows.count == 0 || q->columns.count == 0) return NULL;
    const char *refused = no_target(q, &held[TARGET], itemsize_of(kind), &offset, steps);
    if (refused == NULL) refused = refusal(q, held);
    if (refused == NULL) decode_all(q, (char *)held[TARGET].buf + offset, steps, kind);
    return refused;
}

static PyObject *decode(PyObject *module, PyObject *args)
{
    PyObject *objects[NUM_BUFFERS];
    Py_buffer held[NUM_BUFFERS];
    Request q = {0};
    Py_ssize_t offset, steps[2];
    int kind;
    if (!PyArg_ParseTuple(args, "i(II)On(nn)On(nnnn)(nnnn)OiOOifOf", &kind, &q.nan[0], &q.nan[1], &objects[TARGET],
                          &offset, &steps[0], &steps[1], &objects[CODES], &q.per_word, &q.rows.start, &q.rows.step,
                          &q.rows.count, &q.rows.size, &q.columns.start, &q.columns.step, &q.columns.count,
                          &q.columns.size, &objects[VALUES], &q.scale_kind, &objects[SCALES], &objects[TABLE],
                          &q.by_total, &q.total, &objects[ZEROS], &q.zero))
        return NULL;
    if (kind < BF16 || kind > F32 || q.scale_kind < BF16 || q.scale_kind > BYTES || q.by_total < AS_THEY_ARE ||
        q.by_total > BY_TOTAL) {
        PyErr_SetString(PyExc_ValueError, "types are bfloat16 (0), float16 (1), float32 (2) or, of scales, bytes (3)");
        return NULL;
    }
    if (!get_buffers(objects, held)) return NULL;
    q.codes = held[CODES].buf, q.scales = held[SCALES].buf;
    q.values = held[VALUES].obj == NULL ? NULL : held[VALUES].buf;
    q.table = held[TABLE].obj == NULL ? NULL : held[TABLE].buf;
    q.zeros = held[ZEROS].obj == NULL ? NULL : held[ZEROS].buf;
    q.total = q.total != q.total ? NAN : q.total;
    const char *refused;
    Py_BEGIN_ALLOW_THREADS
    refused = decoded(&q, held, kind, offset, steps);
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
     "decode(kind, nans, target, offset, steps, codes, per_word, rows, columns, values, scale_kind, scales, table, "
     "by_total, total, zeros, zero): see quant.kernels.compiled"},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module) { return PyModule_AddIntConstant(module, "VERSION", VERSION); }

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill_module}, {0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_decode", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__decode(void) { return PyModuleDef_Init(&MODULE); }
