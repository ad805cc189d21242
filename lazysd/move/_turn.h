/* Rows of elements by size alone, any steps apart, and tiles that are turned: _strided.c copies by them, and
 * lazysd/quant/_decode.c stores what it has decoded. Included once a file, after Python.h.
 */
#include <stdint.h>
#include <string.h>

/* n vectors of n elements, turned in log2(n) steps of interleaving the first half with the second. */
#if !defined(NO_VECTORS) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 12)
#define ZIP1_LOW 0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23
#define ZIP1_HIGH 8, 24, 9, 25, 10, 26, 11, 27, 12, 28, 13, 29, 14, 30, 15, 31
#define ZIP2_LOW 0, 8, 1, 9, 2, 10, 3, 11
#define ZIP2_HIGH 4, 12, 5, 13, 6, 14, 7, 15
#define ZIP4_LOW 0, 4, 1, 5
#define ZIP4_HIGH 2, 6, 3, 7
#define ZIP8_LOW 0, 2
#define ZIP8_HIGH 1, 3
#define TURN(name, type, n, zip)                                                                                       \
    static inline void name(char *to, Py_ssize_t to_pitch, const char *from, Py_ssize_t from_pitch)                    \
    {                                                                                                                  \
        typedef type Vector __attribute__((vector_size(16)));                                                          \
        Vector rows[n], zipped[n];                                                                                     \
        for (int k = 0; k < n; k++) memcpy(&rows[k], from + k * from_pitch, 16);                                       \
        for (int left = n; left > 1; left /= 2) {                                                                      \
            for (int k = 0; k < n / 2; k++) {                                                                          \
                zipped[2 * k] = __builtin_shufflevector(rows[k], rows[k + n / 2], zip##_LOW);                          \
                zipped[2 * k + 1] = __builtin_shufflevector(rows[k], rows[k + n / 2], zip##_HIGH);                     \
            }                                                                                                          \
            memcpy(rows, zipped, sizeof rows);                                                                         \
        }                                                                                                              \
        for (int k = 0; k < n; k++) memcpy(to + k * to_pitch, &rows[k], 16);                                           \
    }
#else /* one element at a time */
#define TURN(name, type, n, zip)                                                                                       \
    static inline void name(char *to, Py_ssize_t to_pitch, const char *from, Py_ssize_t from_pitch)                    \
    {                                                                                                                  \
        const size_t size = sizeof(type);                                                                              \
        for (int k = 0; k < n; k++)                                                                                    \
            for (int i = 0; i < n; i++) memcpy(to + k * to_pitch + i * size, from + i * from_pitch + k * size, size);  \
    }
#endif
TURN(turn1, uint8_t, 16, ZIP1)
TURN(turn2, uint16_t, 8, ZIP2)
TURN(turn4, uint32_t, 4, ZIP4)
TURN(turn8, uint64_t, 2, ZIP8)

/* Per element size: rows along which both sides advance by any step, and tiles of `m` x `n` that go from rows of the
 * source, `from_pitch` apart, to rows of the target, `to_pitch` apart. */
#define COPIES(type, turn, block)                                                                                    \
    static void row_##turn(char *to, Py_ssize_t to_step, const char *from, Py_ssize_t from_step, Py_ssize_t n)       \
    {                                                                                                                \
        if (to_step == sizeof(type) && from_step == sizeof(type)) {                                                  \
            memcpy(to, from, n * sizeof(type));                                                                      \
            return;                                                                                                  \
        }                                                                                                            \
        for (Py_ssize_t k = 0; k < n; k++) {                                                                         \
            type one;                                                                                                \
            memcpy(&one, from + k * from_step, sizeof(type));                                                        \
            memcpy(to + k * to_step, &one, sizeof(type));                                                            \
        }                                                                                                            \
    }                                                                                                                \
    static void tile_##turn(char *to, Py_ssize_t to_pitch, const char *from, Py_ssize_t from_pitch, int m, int n)    \
    {                                                                                                                \
        int i = 0;                                                                                                   \
        for (; i + block <= n; i += block) {                                                                         \
            int j = 0;                                                                                               \
            for (; j + block <= m; j += block)                                                                       \
                turn(to + i * to_pitch + j * sizeof(type), to_pitch, from + j * from_pitch + i * sizeof(type),       \
                     from_pitch);                                                                                    \
            for (int k = i; k < i + block; k++)                                                                      \
                row_##turn(to + k * to_pitch + j * sizeof(type), sizeof(type),                                       \
                           from + j * from_pitch + k * sizeof(type), from_pitch, m - j);                             \
        }                                                                                                            \
        for (; i < n; i++) row_##turn(to + i * to_pitch, sizeof(type), from + i * sizeof(type), from_pitch, m);      \
    }
COPIES(uint8_t, turn1, 16)
COPIES(uint16_t, turn2, 8)
COPIES(uint32_t, turn4, 4)
COPIES(uint64_t, turn8, 2)

typedef void (*Row)(char *, Py_ssize_t, const char *, Py_ssize_t, Py_ssize_t);
typedef void (*Tile)(char *, Py_ssize_t, const char *, Py_ssize_t, int, int);
static const Row ROWS[] = {[1] = row_turn1, [2] = row_turn2, [4] = row_turn4, [8] = row_turn8};
static const Tile TILES[] = {[1] = tile_turn1, [2] = tile_turn2, [4] = tile_turn4, [8] = tile_turn8};
