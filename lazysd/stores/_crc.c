/* CRC-32 (IEEE 802.3) of bytes by carry-less products: lazysd.stores.crc uses it where it is there and says what zlib says.
 *
 * A stretch of the message, as a polynomial over GF(2), may be replaced by anything that is the same modulo the CRC's
 * polynomial. So accumulators of 16 bytes are folded onto the bytes `distance` bits further on, by two products each
 * with constants x^n modulo the polynomial; 16 bytes that stand for all before them are left, and go through a table.
 *
 * Source of the method: V. Gopal et al., Fast CRC Computation for Generic Polynomials Using PCLMULQDQ (Intel, 2009).
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__) && defined(__GNUC__) && (defined(__clang__) || __GNUC__ >= 9)
#include <immintrin.h>
#define FOLDS
#endif

enum { VERSION = 1, LEAST = 128, UNLOCKED_NBYTES = 4096 };

static const uint32_t POLYNOMIAL = 0x04C11DB7; /* x^32 is the bit beyond it */
static uint32_t TABLE[256];                    /* of one byte, bits reflected */

static uint32_t reflected(uint32_t value)
{
    uint32_t turned = 0;
    for (int k = 0; k < 32; k++) turned |= (value >> k & 1) << (31 - k);
    return turned;
}

static void fill_table(void)
{
    for (uint32_t byte = 0; byte < 256; byte++) {
        uint32_t value = byte;
        for (int k = 0; k < 8; k++) value = value >> 1 ^ (value & 1 ? reflected(POLYNOMIAL) : 0);
        TABLE[byte] = value;
    }
}

static uint32_t by_table(uint32_t state, const unsigned char *data, Py_ssize_t nbytes)
{
    for (Py_ssize_t k = 0; k < nbytes; k++) state = state >> 8 ^ TABLE[(state ^ data[k]) & 0xFF];
    return state;
}

#ifdef FOLDS
static uint64_t NEAR[2], FAR[2], WIDE[2]; /* that fold 128, 512 and 1024 bits on */

/* x^n modulo the polynomial, as a factor of reflected numbers: those products are one bit off. */
static uint64_t power(int n)
{
    uint32_t value = 1;
    for (int k = 0; k < n; k++) value = value << 1 ^ (value >> 31 ? POLYNOMIAL : 0);
    return (uint64_t)reflected(value) << 1;
}

static void fill_factors(uint64_t *factors, int distance)
{
    factors[0] = power(distance + 32);
    factors[1] = power(distance - 32);
}

#define NARROW __attribute__((target("pclmul,sse4.1")))
#define BROAD __attribute__((target("vpclmulqdq,pclmul,avx2")))

NARROW static inline __m128i folded(__m128i sum, __m128i factors, __m128i next)
{
    __m128i low = _mm_clmulepi64_si128(sum, factors, 0x00), high = _mm_clmulepi64_si128(sum, factors, 0x11);
    return _mm_xor_si128(_mm_xor_si128(low, high), next);
}

NARROW static inline __m128i loaded(const void *from) { return _mm_loadu_si128(from); }

/* Sums that stand for what came before, in order, and the whole 16 bytes after them, as one; then what is left. */
NARROW static uint32_t finished(const __m128i *sums, int count, const unsigned char *data, Py_ssize_t nbytes)
{
    __m128i near = loaded(NEAR), sum = sums[0];
    for (int k = 1; k < count; k++) sum = folded(sum, near, sums[k]);
    for (; nbytes >= 16; data += 16, nbytes -= 16) sum = folded(sum, near, loaded(data));
    unsigned char rest[16];
    _mm_storeu_si128((__m128i *)rest, sum);
    return by_table(by_table(0, rest, 16), data, nbytes);
}

NARROW static uint32_t by_folding(uint32_t state, const unsigned char *data, Py_ssize_t nbytes)
{
    __m128i far = loaded(FAR), sums[4];
    for (int k = 0; k < 4; k++) sums[k] = loaded(data + 16 * k);
    sums[0] = _mm_xor_si128(sums[0], _mm_cvtsi32_si128((int)state));
    for (data += 64, nbytes -= 64; nbytes >= 64; data += 64, nbytes -= 64)
        for (int k = 0; k < 4; k++) sums[k] = folded(sums[k], far, loaded(data + 16 * k));
    return finished(sums, 4, data, nbytes);
}

BROAD static uint32_t by_wide_folding(uint32_t state, const unsigned char *data, Py_ssize_t nbytes)
{
    __m256i wide = _mm256_broadcastsi128_si256(loaded(WIDE)), sums[4];
    for (int k = 0; k < 4; k++) sums[k] = _mm256_loadu_si256((const __m256i *)(data + 32 * k));
    sums[0] = _mm256_xor_si256(sums[0], _mm256_zextsi128_si256(_mm_cvtsi32_si128((int)state)));
    for (data += 128, nbytes -= 128; nbytes >= 128; data += 128, nbytes -= 128)
        for (int k = 0; k < 4; k++) {
            __m256i next = _mm256_loadu_si256((const __m256i *)(data + 32 * k));
            __m256i low = _mm256_clmulepi64_epi128(sums[k], wide, 0x00);
            __m256i high = _mm256_clmulepi64_epi128(sums[k], wide, 0x11);
            sums[k] = _mm256_xor_si256(_mm256_xor_si256(low, high), next);
        }
    __m128i halves[8];
    memcpy(halves, sums, sizeof halves);
    return finished(halves, 8, data, nbytes);
}
#endif

typedef uint32_t (*Method)(uint32_t, const unsigned char *, Py_ssize_t);
static Method METHODS[3] = {by_table}; /* the best one last; all but the first take LEAST bytes or more */
static int num_methods = 1;

static void find_methods(void)
{
#ifdef FOLDS
    fill_factors(NEAR, 128);
    fill_factors(FAR, 512);
    fill_factors(WIDE, 1024);
    if (__builtin_cpu_supports("pclmul") && __builtin_cpu_supports("sse4.1")) METHODS[num_methods++] = by_folding;
    if (__builtin_cpu_supports("vpclmulqdq") && __builtin_cpu_supports("avx2"))
        METHODS[num_methods++] = by_wide_folding;
#endif
}

static PyObject *crc32(PyObject *module, PyObject *args)
{
    PyObject *memory;
    unsigned long before = 0;
    int number = num_methods - 1;
    if (!PyArg_ParseTuple(args, "O|ki", &memory, &before, &number)) return NULL;
    if (number < 0 || number >= num_methods) {
        PyErr_SetString(PyExc_ValueError, "there is no such method here");
        return NULL;
    }
    Py_buffer data;
    if (PyObject_GetBuffer(memory, &data, PyBUF_SIMPLE) < 0) return NULL;
    Method method = METHODS[data.len < LEAST ? 0 : number];
    uint32_t state = ~(uint32_t)before;
    if (data.len < UNLOCKED_NBYTES) {
        state = method(state, data.buf, data.len);
    } else {
        Py_BEGIN_ALLOW_THREADS
        state = method(state, data.buf, data.len);
        Py_END_ALLOW_THREADS
    }
    PyBuffer_Release(&data);
    return PyLong_FromUnsignedLong(~state & 0xFFFFFFFF);
}

static PyMethodDef FUNCTIONS[] = {
    {"crc32", crc32, METH_VARARGS, "crc32(data, value=0, method): as zlib's; by one of NUM_METHODS, the best is the last"},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module)
{
    if (num_methods == 1) {
        fill_table();
        find_methods();
    }
    if (PyModule_AddIntConstant(module, "VERSION", VERSION) < 0) return -1;
    return PyModule_AddIntConstant(module, "NUM_METHODS", num_methods);
}

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill_module}, {0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_crc", NULL, 0, FUNCTIONS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__crc(void) { return PyModuleDef_Init(&MODULE); }
