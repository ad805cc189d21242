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
#include <errno.h>
#include <stdlib.h>
#if defined(__linux__) || defined(__FreeBSD__)
#include <sys/uio.h>
#include <unistd.h>
#define READS
#endif
#include "_turn.h"

enum { MAX_AXES = 64, MAX_TILE = 64, ALIASING_NBYTES = 1024, PANEL_NBYTES = 512, MAX_PARTS = 256, VERSION = 1 };
enum { LINE_NBYTES = 64 };

typedef struct {
    Py_ssize_t size, to, from; /* elements; bytes from one to the next in target and source */
} Axis;

/* Have the cache fetch the lines that the next tile writes to: stores that miss wait for each other. */
static void fetch_ahead(char *to, Py_ssize_t pitch, int rows, Py_ssize_t nbytes)
{
    for (int k = 0; k < rows; k++)
        for (Py_ssize_t at = 0; at < nbytes; at += LINE_NBYTES) __builtin_prefetch(to + k * pitch + at, 1);
}

static Py_ssize_t lesser(Py_ssize_t a, Py_ssize_t b) { return a < b ? a : b; }

/* across: the target's elements are neighbours. along: the source's are. Rows that would meet in one set of the cache are
 * packed, by stretches of PANEL_NBYTES: memory is quicker at those than at what one tile takes of a row. */
static void transpose(char *to, const char *from, Axis across, Axis along, int itemsize, int edge)
{
    char packed[MAX_TILE * (PANEL_NBYTES + LINE_NBYTES)];
    int aliased = across.from % ALIASING_NBYTES == 0;
    Py_ssize_t width = PANEL_NBYTES / itemsize / edge * edge; /* of a panel, in whole tiles */
    for (Py_ssize_t left = 0; left < along.size; left += width) {
        Py_ssize_t right = left + lesser(width, along.size - left), packed_pitch = width * itemsize + LINE_NBYTES;
        for (Py_ssize_t j = 0; j < across.size; j += edge) {
            int m = (int)lesser(edge, across.size - j), next = (int)lesser(edge, across.size - j - m);
            const char *corner = from + left * along.from + j * across.from;
            Py_ssize_t pitch = across.from;
            if (aliased) {
                pitch = packed_pitch;
                for (int k = 0; k < m; k++) memcpy(packed + k * pitch, corner + k * across.from, (right - left) * itemsize);
                corner = packed;
            }
            for (Py_ssize_t i = left; i < right; i += edge) {
                int n = (int)lesser(edge, right - i);
                char *target = to + i * along.to + j * itemsize;
                if (next) fetch_ahead(target + m * itemsize, along.to, n, next * itemsize);
                TILES[itemsize](target, along.to, corner + (i - left) * itemsize, pitch, m, n);
            }
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

/* The axes of a copy: 1 where elements are to be moved, 0 where there are none, -1 on an error, which is then set. */
static int parse_work(PyObject *dims, PyObject *to_strides, PyObject *from_strides, int itemsize, int edge, Axis *axes,
                      Py_ssize_t *count)
{
    if ((itemsize != 1 && itemsize != 2 && itemsize != 4 && itemsize != 8) || edge < 1 || edge > MAX_TILE) {
        PyErr_SetString(PyExc_ValueError, "elements have 1, 2, 4 or 8 bytes, tiles edges of 1 to 64 elements");
        return -1;
    }
    if (!parse_axes(dims, to_strides, from_strides, itemsize, axes, count)) return -1;
    for (Py_ssize_t k = 0; k < *count; k++)
        if (axes[k].size == 0) return 0;
    return 1;
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
    int work = parse_work(dims, to_strides, from_strides, itemsize, edge, axes, &count);
    if (work < 0) return NULL;
    if (work == 0) Py_RETURN_NONE;
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

#ifdef READS
/* Stretches of a file, each laid out in rows with gaps between them. */
typedef struct {
    int fd;
    Py_ssize_t nbytes, row, gap;
} Layout;

/* Where reading stopped, how much is missing from there, and why: 0 where the file ended. */
typedef struct {
    Py_ssize_t at, missing;
    int number;
} Failure;

/* A signal has come: -1 where its handler raised. */
static int handle_signals(PyThreadState **state)
{
    PyEval_RestoreThread(*state);
    int raised = PyErr_CheckSignals();
    *state = PyEval_SaveThread();
    return raised;
}

/* Read one stretch; 0 when it is there, 1 on a failure, -1 where a signal's handler has raised. */
static int read_stretch(const Layout *layout, Py_ssize_t offset, char *buffer, Failure *failure, PyThreadState **state)
{
    Py_ssize_t done = 0;
    while (done < layout->nbytes) {
        struct iovec parts[MAX_PARTS];
        int count = 0;
        for (Py_ssize_t at = done; at < layout->nbytes && count < MAX_PARTS;) {
            Py_ssize_t row = at / layout->row, within = at % layout->row, size = layout->row - within;
            if (size > layout->nbytes - at) size = layout->nbytes - at;
            parts[count++] = (struct iovec){buffer + row * (layout->row + layout->gap) + within, size};
            at += size;
        }
        Py_ssize_t got = preadv(layout->fd, parts, count, offset + done);
        if (got > 0) {
            done += got;
        } else if (got == 0 || errno != EINTR) {
            *failure = (Failure){offset + done, layout->nbytes - done, got ? errno : 0};
            return 1;
        } else if (handle_signals(state) < 0) {
            return -1;
        }
    }
    return 0;
}

/* Whether a stretch of any block lies where no file has bytes. */
static int outside_files(const Layout *layout, Py_ssize_t at, Py_ssize_t reach)
{
    Py_ssize_t last, end;
    if (__builtin_add_overflow(at, reach, &last) || __builtin_add_overflow(last, layout->nbytes, &end)) return 1;
    return at < 0 || last < 0 || __builtin_add_overflow(at, layout->nbytes, &end);
}

/* Why stretches cannot be laid out in a buffer; NULL where they can, each `stored` bytes after the one before. */
static const char *refused_layout(const Layout *layout, const Py_ssize_t *starts, Py_ssize_t num_starts,
                                  Py_ssize_t offset, Py_ssize_t num_blocks, Py_ssize_t pitch, Py_ssize_t nbytes,
                                  Py_ssize_t *stored)
{
    Py_ssize_t total, reach, at;
    if (num_blocks < 1 || layout->nbytes < 1 || layout->row < 1 || layout->gap < 0)
        return "there is nothing to read, or rows have no length";
    Py_ssize_t rows = (layout->nbytes - 1) / layout->row + 1;
    if (__builtin_mul_overflow(rows, layout->gap, stored) || __builtin_add_overflow(*stored, layout->nbytes, stored) ||
        __builtin_mul_overflow(*stored, num_starts, &total) || total > nbytes)
        return "the buffer is too small";
    if (__builtin_mul_overflow(num_blocks - 1, pitch, &reach)) return "a block lies where no file has bytes";
    for (Py_ssize_t k = 0; k < num_starts; k++)
        if (__builtin_add_overflow(offset, starts[k], &at) || outside_files(layout, at, reach))
            return "a block lies where no file has bytes";
    return NULL;
}

/* The tuple of starts as numbers; NULL on an error, which is then set. */
static Py_ssize_t *parse_starts(PyObject *starts, Py_ssize_t *count)
{
    *count = PyTuple_Check(starts) ? PyTuple_Size(starts) : 0;
    Py_ssize_t *found = *count > 0 ? PyMem_Malloc(*count * sizeof(Py_ssize_t)) : NULL;
    if (found == NULL) {
        PyErr_SetString(PyExc_ValueError, "there is no stretch to read, or no memory");
        return NULL;
    }
    for (Py_ssize_t k = 0; k < *count; k++) found[k] = PyLong_AsSsize_t(PyTuple_GetItem(starts, k));
    if (!PyErr_Occurred()) return found;
    PyMem_Free(found);
    return NULL;
}

static PyObject *gather(PyObject *module, PyObject *args)
{
    PyObject *starts_tuple, *buffer_memory, *dims, *from_strides, *to_memory, *to_strides;
    Py_ssize_t offset, num_blocks, from_pitch, to_start, to_pitch, count, num_starts;
    int itemsize, edge;
    Layout layout;
    Axis axes[MAX_AXES], walked[MAX_AXES];
    if (!PyArg_ParseTuple(args, "innnOnnnOOOiOnOni", &layout.fd, &offset, &num_blocks, &from_pitch, &starts_tuple,
                          &layout.nbytes, &layout.row, &layout.gap, &from_strides, &buffer_memory, &dims, &itemsize,
                          &to_memory, &to_start, &to_strides, &to_pitch, &edge))
        return NULL;
    int work = parse_work(dims, to_strides, from_strides, itemsize, edge, axes, &count);
    if (work < 0) return NULL;
    if (work == 0) Py_RETURN_NONE;
    Py_ssize_t *starts = parse_starts(starts_tuple, &num_starts);
    if (starts == NULL) return NULL;
    Py_buffer to, from;
    if (PyObject_GetBuffer(to_memory, &to, PyBUF_WRITABLE) < 0) {
        PyMem_Free(starts);
        return NULL;
    }
    if (PyObject_GetBuffer(buffer_memory, &from, PyBUF_WRITABLE) < 0) {
        PyBuffer_Release(&to);
        PyMem_Free(starts);
        return NULL;
    }
    Failure failure;
    int stopped = 0;
    Py_ssize_t stored = 0;
    PyThreadState *state = PyEval_SaveThread();
    const char *refused = refused_layout(&layout, starts, num_starts, offset, num_blocks, from_pitch, from.len, &stored);
    Py_ssize_t last = 0, start = to_start, from_start = 0;
    if (refused == NULL && (__builtin_mul_overflow(num_blocks - 1, to_pitch, &last) ||
                            __builtin_add_overflow(to_start, last, &last)))
        refused = "the target reaches beyond its memory";
    if (refused == NULL) refused = refusal(axes, (int)count, itemsize, &to, &last, &from, &from_start);
    if (refused == NULL) refused = refusal(axes, (int)count, itemsize, &to, &start, &from, &from_start);
    for (Py_ssize_t block = 0; refused == NULL && !stopped && block < num_blocks; block++) {
        for (Py_ssize_t k = 0; k < num_starts && !stopped; k++)
            stopped = read_stretch(&layout, offset + starts[k] + block * from_pitch, (char *)from.buf + k * stored,
                                   &failure, &state);
        if (stopped) break;
        memcpy(walked, axes, count * sizeof(Axis));
        copy((char *)to.buf + start + block * to_pitch * itemsize, from.buf, walked, (int)count, itemsize, edge);
    }
    PyEval_RestoreThread(state);
    PyBuffer_Release(&from);
    PyBuffer_Release(&to);
    PyMem_Free(starts);
    if (refused != NULL) PyErr_SetString(PyExc_ValueError, refused);
    if (refused != NULL || stopped < 0) return NULL;
    if (stopped) return Py_BuildValue("nni", failure.at, failure.missing, failure.number);
    Py_RETURN_NONE;
}
#endif

static PyMethodDef METHODS[] = {
    {"copy", copy_strided, METH_VARARGS,
     "copy(dims, itemsize, target, offset, strides, source, offset, strides, edge): see move.transpose.copy"},
#ifdef READS
    {"gather", gather, METH_VARARGS,
     "gather(fd, *reading, buffer, dims, itemsize, target, offset, strides, pitch, edge): see Kernel.gather"},
#endif
    {NULL, NULL, 0, NULL},
};

static int fill_module(PyObject *module) { return PyModule_AddIntConstant(module, "VERSION", VERSION); }

static PyModuleDef_Slot SLOTS[] = {{Py_mod_exec, fill_module}, {0, NULL}};
static PyModuleDef MODULE = {PyModuleDef_HEAD_INIT, "_strided", NULL, 0, METHODS, SLOTS, NULL, NULL, NULL};

PyMODINIT_FUNC PyInit__strided(void) { return PyModuleDef_Init(&MODULE); }
