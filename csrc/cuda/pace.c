/*
 * pace.c - see pace.h.
 */
#include "pace.h"

#include "llama2c.h"

static const double SHORT = 20.0, LONG = 40.0; /* milliseconds of a launch: it may grow; it is to be expected */

static size_t smaller(size_t a, size_t b) { return a < b ? a : b; }

double l2c_pace_ms(const l2c_pace *p, size_t rows) { return rows > p->rows && p->rows > 0 ? p->ms * (double)rows / (double)p->rows : p->ms; }

size_t l2c_pace_sweeps(const l2c_pace *p, size_t rows, size_t wanted) {
    size_t n = smaller(wanted, p->most > 0 ? p->most : 1);
    double ms = l2c_pace_ms(p, rows);
    if (ms * (double)n > LONG) n = (size_t)(LONG / ms);
    return n > 0 ? n : 1;
}

void l2c_pace_note(l2c_pace *p, size_t rows, size_t sweeps, double ms) {
    if (p->most == 0) p->most = 1;
    p->rows = rows;
    p->ms = ms / (double)sweeps;
    if (ms < SHORT && sweeps >= p->most) p->most = smaller(2 * sweeps, L2C_MAX_STEPS);
    else if (ms > LONG) p->most = l2c_pace_sweeps(p, rows, p->most);
}
