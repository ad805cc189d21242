/* Copies of strided blocks, element by element, by size alone: the compiled kernel of lazysd.move.kernels.compiled.
 *
 * A block has up to MAX_AXES axes. Two of them matter: the one along which the target's elements lie closest together,
 * and the source's. Where it is one axis, rows are copied. Where there are two, they are transposed in square tiles,
 * small blocks of which are turned in registers; tiles of rows that would meet in one set of the cache, because their
 * pitch is a large power of two, are packed first. Everything is checked before the first byte is written.
 */
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <stdlib.h>
#include "_turn.h"

enum { MAX_AXES = 64, MAX_TILE = 64, ALIASING_NBYTES = 1024, VERSION = 1 };

typedef struct {
    Py_ssize_t size, to, from; /* elements; bytes from one to the next in target and source */
} Axis;

/* across: the target's elements are neighbours. along: the source's are. */
static void transpose(char *to, const char *from, Axis across, Axis along, int itemsize, int edge)
{
    char packed[MAX_TILE * MAX_TILE * 8];
    int aliased = across.from % ALIASING_NBYTES == 0;
    for (Py_ssize_t i = 0; i < along.size; i += edge) {
        int n = along.size - i < edge ? (int)(along.size - i) : edge;
        for (Py_ssize_t j = 0; j < across.size; j += edge) {
            int m = across.size - j < edge ? (int)(across.size - j) : edge;
            const char *corner = from + i * along.from + j * across.from;
            Py_ssize_t pitch = across.from;
            if (aliased) {
                pitch = (Py_ssize_t)n * itemsize;
                for (int k = 0; k < m; k++) memcpy(packed + k * pitch, corner + k * across.from, pitch);
                corner = packed;
            }
            Py_ssize_t left = across.size - j - m;
            if (left) fetch_ahead(to + i * along.to + (j + m) * itemsize, along.to, n, (left < m ? left : m) * itemsize);
            TILES[itemsize](to + i * along.to + j * across.to, along.to, corner, pitch, m, n);
        }
    }
}

static Py_ssize_t magnitude(Py_ssize_t step) { return step < 0 ? -step : step; }

/* The axes in the order in which to walk them: the target's nearest last. */
static int sorted_axes(Axis *axes, int count)
{
    int kept = 0;
    for (int k = 0; k < count; k++) {
        if (axes[k].size == 1) continue;
        Axis axis = axes[k];
        int at = kept++;
        for (; at > 0 && magnitude(axes[at - 1].to) < magnitude(axis.to); at--) axes[at] = axes[at - 1];
        axes[at] = axis;
    }
    int joined = 0; /* neighbours that both sides walk evenly are one axis */
    for (int k = 1; k < kept; k++) {
        Axis *outer = &axes[joined], inner = axes[k];
        if (outer->to == inner.size * inner.to && outer->from == inner.size * inner.from)
            *outer = (Axis){outer->size * inner.size, inner.to, inner.from};
        else
            axes[++joined] = inner;
    }
    return kept ? joined + 1 : 0;
}

static void copy(char *to, const char *from, Axis *axes, int count, int itemsize, int edge)
{
    count = sorted_axes(axes, count);
    if (count == 0) axes[count++] = (Axis){1, itemsize, itemsize};
    Axis inner = axes[--count], along = inner;
    int turned = -1;
    for (int k = 0; k < count; k++)
        if (axes[k].from == itemsize && inner.to == itemsize && inner.from != itemsize) turned = k;
    if (turned >= 0) {
        along = axes[turned];
        memmove(axes + turned, axes + turned + 1, (--count - turned) * sizeof(Axis));
    }
    Py_ssize_t index[MAX_AXES] = {0};
    for (;;) {
        if (turned >= 0)
            transpose(to, from, inner, along, itemsize, edge);
        else
            ROWS[itemsize](to, inner.to, from, inner.from, inner.size);
        int k = count - 1;
        for (; k >= 0; k--) {
            to += axes[k].to;
            from += axes[k].from;
            if (++index[k] < axes[k].size) break;
            to -= axes[k].size * axes[k].to;
            from -= axes[k].size * axes[k].from;
            index[k] = 0;
        }
        if (k < 0) return;
    }
}

/* Lowest and highest byte of a block relative to its memory; 0 where it stays inside, without overflow. */
static int outside(const Axis *axes, int count, int side, Py_ssize_t start, int itemsize, Py_ssize_t nbytes,
                   Py_ssize_t *low, Py_ssize_t *high)
{
    *low = *high = start;
    for (int k = 0; k < count; k++) {
        Py_ssize_t reach;
        if (__builtin_mul_overflow(axes[k].size - 1, side ? axes[k].from : axes[k].to, &reach)) return 1;
        if (__builtin_add_overflow(reach < 0 ? *low : *high, reach, reach < 0 ? low : high)) return 1;
    }
    if (__builtin_add_overflow(*high, (Py_ssize_t)itemsize, high)) return 1;
    return *low < 0 || *high > nbytes;
}

/* Whether elements of the target share a place: -1 where there is no memory to find out. The block is inside. */
static int shares_places(const Axis *axes, int count, int itemsize, Py_ssize_t low, Py_ssize_t high)
{
    Axis order[MAX_AXES];
    memcpy(order, axes, count * sizeof(Axis));
    Py_ssize_t places = (high - low) / itemsize, numel = 1, reach = 0;
    for (int k = 0; k < count; k++) {
        if (__builtin_mul_overflow(numel, axes[k].size, &numel) || numel > places) return 1;
        order[k].from = 0;
    }
    int kept = 0; /* smallest steps first */
    for (int k = 0; k < count; k++) {
        if (order[k].size == 1) continue;
        Axis axis = order[k];
        int at = kept++;
        for (; at > 0 && magnitude(order[at - 1].to) > magnitude(axis.to); at--) order[at] = order[at - 1];
        order[at] = axis;
    }
    int apart = 1;
    for (int k = 0; k < kept; k++) {
        apart = apart && magnitude(order[k].to) / itemsize > reach;
        reach += (order[k].size - 1) * (magnitude(order[k].to) / itemsize);
    }
    if (apart) return 0;
    unsigned char *taken = calloc(places, 1); /* steps land among each other: look where each element lies */
    if (taken == NULL) return -1;
    Py_ssize_t index[MAX_AXES] = {0}, at = 0;
    int shared = 0, k = 0;
    while (k >= 0 && !shared) {
        shared = taken[at]++;
        for (k = kept - 1; k >= 0; k--) {
            at += magnitude(order[k].to) / itemsize;
            if (++index[k] < order[k].size) break;
            at -= order[k].size * (magnitude(order[k].to) / itemsize);
            index[k] = 0;
        }
    }
    free(taken);
    return shared;
}

/* The tuples of sizes and steps (in elements), as axes in bytes; 0 on an error, which is then set. */
static int parse_axes(PyObject *dims, PyObject *to, PyObject *from, int itemsize, Axis *axes, Py_ssize_t *count)
{
    *count = PyTuple_Check(dims) ? PyTuple_Size(dims) : -1;
    if (*count < 0 || *count > MAX_AXES || !PyTuple_Check(to) || !PyTuple_Check(from) || PyTuple_Size(to) != *count ||
        PyTuple_Size(from) != *count) {
        PyErr_SetString(PyExc_ValueError, "sizes and strides are tuples of one length, at most 64");
        return 0;
    }
    for (Py_ssize_t k = 0; k < *count; k++) {
        axes[k].size = PyLong_AsSsize_t(PyTuple_GetItem(dims, k));
        Py_ssize_t to_step = PyLong_AsSsize_t(PyTuple_GetItem(to, k));
        Py_ssize_t from_step = PyLong_AsSsize_t(PyTuple_GetItem(from, k));
        if (PyErr_Occurred()) return 0;
        if (axes[k].size < 0 || __builtin_mul_overflow(to_step, (Py_ssize_t)itemsize, &axes[k].to) ||
            __builtin_mul_overflow(from_step, (Py_ssize_t)itemsize, &axes[k].from)) {
            PyErr_SetString(PyExc_ValueError, "a size is negative, or a stride reaches beyond any memory");
            return 0;
        }
        if (axes[k].size <= 1) axes[k].to = axes[k].from = itemsize; /* a step that nobody takes */
    }
    return 1;
}

static const char *refusal(Axis *axes, int count, int itemsize, Py_buffer *to, Py_ssize_t *to_start, Py_buffer *from,
                           Py_ssize_t *from_start)
{
    Py_ssize_t low[2], high[2];
    if (__builtin_mul_overflow(*to_start, (Py_ssize_t)itemsize, to_start) ||
        __builtin_mul_overflow(*from_start, (Py_ssize_t)itemsize, from_start) ||
        outside(axes, count, 0, *to_start, itemsize, to->len, &low[0], &high[0]))
        return "the target reaches beyond its memory";
    if (outside(axes, count, 1, *from_start, itemsize, from->len, &low[1], &high[1]))
        return "the source reaches beyond its memory";
    uintptr_t target = (uintptr_t)to->buf, source = (uintptr_t)from->buf;
    if (target + low[0] < source + high[1] && source + low[1] < target + high[0])
        return "cannot copy between blocks that share memory";
    int shared = shares_places(axes, count, itemsize, low[0], high[0]);
    return shared ? shared < 0 ? "no memory to check the target's strides" : "several elements share one place" : NULL;
}

static PyObject *copy_strided(PyObject *module, PyObject *args)
{
    PyObject *to_memory, *from_memory, *dims, *to_strides, *from_strides;
    Py_ssize_t to_start, from_start, count;
    int itemsize, edge;
    Axis axes[MAX_AXES];
    if (!PyArg_ParseTuple(args, "OiOnOOnOi", &dims, &itemsize, &to_memory, &to_start, &to_strides, &from_memory,
                          &from_start, &from_strides, &edge))
        return NULL;
    if ((itemsize != 1 && itemsize != 2 && itemsize != 4 && itemsize != 8) || edge < 1 || edge > MAX_TILE) {
        PyErr_SetString(PyExc_ValueError, "elements have 1, 2, 4 or 8 bytes, tiles edges of 1 to 64 elements");
        return NULL;
    }
    if (!parse_axes(dims, to_strides, from_strides, itemsize, axes, &count)) return NULL;
    for (Py_ssize_t k = 0; k < count; k++)
        if (axes[k].size == 0) Py_RETURN_NONE;
    Py_buffer to, from;
    if (PyObject_GetBuffer(to_memory, &to, PyBUF_WRITABLE) < 0) return NULL;
    if (PyObject_GetBuffer(from_memory, &from, PyBUF_SIMPLE) < 0) {
        PyBuffer_Release(&to);
        return NULL;
    }
    const char *refused;
    Py_BEGIN_ALLOW_THREADS
    refused = refusal(axes, (int)count, itemsize, &to, &to_start, &from, &from_start);
    if (refused == NULL) copy((char *)to.buf + to_start, (char *)from.buf + from_start, axes, (int)count, itemsize, edge);
    Py_END_ALLOW_THREADS
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    if (refused != NULL) {
        PyErr_SetString(PyExc_ValueError, refused);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyMethodDef METHODS[] = {
    {"copy", copy_strided, METH_VARARGS,
     "copy(dims, itemsize, target, offset, strides, source, offset, strides, edge): see move.transpose.copy"},
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module) { return PyModule_AddIntConstant(module, "VERSION", VERSION); }

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill_module}, {0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_strided", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__strided(void) { return PyModuleDef_Init(&MODULE); }
