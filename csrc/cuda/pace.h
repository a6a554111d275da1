/*
 * pace.h - how many sweeps the card is given at a time: as many as it makes in a moment, by what the last ones took.
 *
 * A display that hangs on the card, or somebody who wants a story to stop, waits for no more than that. It begins with
 * one sweep, twice as many follow where that took little time, and fewer where it took too long.
 */
#ifndef L2C_CUDA_PACE_H
#define L2C_CUDA_PACE_H

#include <stddef.h>

typedef struct {
    size_t most; /* sweeps that the next launch may have by what launches took; 0: there was none */
    size_t rows; /* of the last launch's sweeps */
    double ms;   /* that one of them took */
} l2c_pace;

/* Milliseconds that a sweep of so many rows takes, at most; 0 where that is not known. More rows may take longer. */
double l2c_pace_ms(const l2c_pace *pace, size_t rows);

/* Sweeps of the next launch, of 1 or more that are wanted. */
size_t l2c_pace_sweeps(const l2c_pace *pace, size_t rows, size_t wanted);

/* A launch of so many sweeps, 1 or more, took so many milliseconds. */
void l2c_pace_note(l2c_pace *pace, size_t rows, size_t sweeps, double ms);

#endif
