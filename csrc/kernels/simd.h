/*
 * simd.h - kernels.h's float32 definitions for vector registers, written once.
 *
 * Each instruction set's file switches it on, defines the primitives below and includes this:
 *
 *     INLINE                      static, always inlined
 *     WIDTH, vec                  floats in a register, 4, 8 or 16; the register
 *     LANES, REGISTERS            16; LANES / WIDTH
 *     lanes                       16 floats: {vec v[REGISTERS]}, the partial sums of kernels.h
 *     integers                    as many int32_t as vec has floats
 *     set, load, store, add, subtract, multiply, divide, larger, negate        of vec
 *     multiply_add(a, b, s)       a * b + s, rounded once
 *     load_part(p, n)             the first n floats at p, then zeros; 1 <= n <= 16, at most WIDTH are taken
 *     load_part_or(p, n, rest)    the same, then the lanes of rest
 *     store_part(p, v, n)         the first n lanes of v, likewise
 *     load_tail(p, n)             lanes: n < 16 floats, then zeros
 *     sum_lanes(s), largest(v)    of all 16 lanes, by kernels.h's tree; of one register's
 *     clamp(x, low, high)         NaN stays
 *     zero_below(v, x, least)     v where not x < least, else +0
 *     bits(v), set_integer, subtract_integers, half_of(n)     of integers; n >> 1
 *     power_of_two(n)             2^n as vec, -126 <= n <= 127
 *     dot_tile(...), TILE_ROWS    see simd_matmul; 3 or 4
 *     SUM_ROWS                    queries whose weighted sums are taken side by side
 *     MASKED                      1: a partial load costs no more than a whole one
 */

INLINE lanes zero(void) {
    lanes s;
    UNROLL for (int k = 0; k < REGISTERS; k++) s.v[k] = set(0.0f);
    return s;
}

INLINE lanes load_lanes(const float *p) {
    lanes s;
    UNROLL for (int k = 0; k < REGISTERS; k++) s.v[k] = load(p + k * WIDTH);
    return s;
}

INLINE lanes multiply_add_lanes(lanes a, lanes b, lanes s) {
    UNROLL for (int k = 0; k < REGISTERS; k++) s.v[k] = multiply_add(a.v[k], b.v[k], s.v[k]);
    return s;
}

/* ---- Products ---------------------------------------------------------------------------------- */

static float simd_dot(const float *a, const float *b, size_t n) {
    lanes s = zero();
    size_t j = 0;
    for (; j + LANES <= n; j += LANES) s = multiply_add_lanes(load_lanes(a + j), load_lanes(b + j), s);
    if (j < n) s = multiply_add_lanes(load_tail(a + j, n - j), load_tail(b + j, n - j), s);
    return sum_lanes(s);
}

/*
 * dot_tile takes 4 weight rows, w_stride apart, against `rows` rows of x, x_stride apart; results of
 * neighbouring weight rows go out_step apart, of neighbouring rows of x out_stride. rows is a compile-time
 * constant: 1 or TILE_ROWS, and where that is 4, 2 or 3 as well. May ask for n_next floats from `next` on of 4 weight rows to come.
 */
INLINE void dot_tile(float *out, size_t out_step, size_t out_stride, const float *x, size_t x_stride, const float *w,
                     size_t w_stride, size_t n, const float *next, size_t n_next, int rows);

/* Weights outside, rows inside: each weight comes from memory once. The 4 weight rows of a tile are
 * a quarter of [begin, end) apart. Each is then a stream of its own that the hardware prefetcher
 * follows, and 4 streams bring a third more from memory than one; neighbouring rows side by side,
 * which share pages, confuse it and bring half.
 *
 * With several rows of x, the streams rest while a weight row is used again, and the prefetcher loses
 * them. So each tile fetches its share of a weight row to come: the next but one, as the next is too
 * near, unless rows are so long that it would be gone from the cache again. */
static void simd_matmul(float *out, size_t out_stride, const float *x, size_t x_stride, size_t n_rows, const float *w,
                        size_t n, size_t begin, size_t end) {
    enum { SHORT_ROW = 1000 };
    size_t quarter = (end - begin) / 4, i = begin, tiles = (n_rows + 3) / 4;
    size_t part = n_rows == 1 ? 0 : (n / LANES + tiles - 1) / tiles * LANES, ahead = n < SHORT_ROW ? 2 * n : n;
#define TILE(rows) dot_tile(out + r * out_stride + i, quarter, out_stride, x + r * x_stride, x_stride, \
                            w + i * n, quarter * n, n, w + i * n + ahead + r / 4 * part, part, rows)
    for (; i < begin + quarter; i++) {
        size_t r = 0;
        for (; r + TILE_ROWS <= n_rows; r += TILE_ROWS) TILE(TILE_ROWS);
        if (TILE_ROWS == 4 && n_rows - r == 3) TILE(3);
        else if (TILE_ROWS == 4 && n_rows - r == 2) TILE(2);
        else if (TILE_ROWS == 4 && n_rows - r == 1) TILE(1);
        else if (TILE_ROWS != 4)
            for (; r < n_rows; r++) TILE(1);
    }
#undef TILE
    for (i = begin + 4 * quarter; i < end; i++)
        for (size_t r = 0; r < n_rows; r++) out[r * out_stride + i] = simd_dot(w + i * n, x + r * x_stride, n);
}

/* ---- exp and what is made of it ------------------------------------------------------------------ */

/* The exponentials of x; step by step as exp_one in scalar.c. */
INLINE vec exp_of(vec x) {
    const vec low = set(L2C_EXP_LOW), round = set(L2C_EXP_ROUND);
    vec t = clamp(x, low, set(L2C_EXP_HIGH));
    vec shifted = multiply_add(t, set(L2C_EXP_LOG2E), round);
    integers n = subtract_integers(bits(shifted), set_integer(L2C_EXP_ROUND_BITS));
    vec whole = subtract(shifted, round);
    vec r = multiply_add(whole, set(-L2C_EXP_LN2_HIGH), t);
    r = multiply_add(whole, set(-L2C_EXP_LN2_LOW), r);
    vec p = multiply_add(set(L2C_EXP_P5), r, set(L2C_EXP_P4));
    p = multiply_add(p, r, set(L2C_EXP_P3));
    p = multiply_add(p, r, set(L2C_EXP_P2));
    p = multiply_add(p, r, set(L2C_EXP_P1));
    p = multiply_add(p, r, set(L2C_EXP_P0));
    p = add(multiply_add(p, multiply(r, r), r), set(1.0f));
    integers half = half_of(n);
    p = multiply(p, power_of_two(half));
    return zero_below(multiply(p, power_of_two(subtract_integers(n, half))), x, low);
}

/* `whole` is a compile-time constant: a caller is compiled once for whole registers and once for a part of one. */
INLINE vec get(const float *p, size_t n, int whole) { return whole ? load(p) : load_part(p, n); }

INLINE void put(float *p, vec v, size_t n, int whole) {
    if (whole) store(p, v);
    else store_part(p, v, n);
}

/* Calls step(j, elements left, whole) for every register of n elements, of which the last may not be whole. */
#define EACH_VECTOR(n, step)                                             \
    do {                                                                 \
        size_t j = 0;                                                    \
        for (; j + WIDTH <= (n); j += WIDTH) step(j, (size_t)WIDTH, 1);  \
        if (j < (n)) step(j, (n) - j, 0);                                \
    } while (0)

static void simd_exp(float *out, const float *x, size_t n) {
#define STEP(j, left, whole) put(out + j, exp_of(get(x + j, left, whole)), left, whole)
    EACH_VECTOR(n, STEP);
#undef STEP
}

/* Two running maxima: with one, each step would wait for the last. */
static float simd_max(const float *x, size_t n) {
    vec m = set(x[0]), m2 = m;
    size_t j = 0;
    for (; j + 2 * WIDTH <= n; j += 2 * WIDTH) {
        m = larger(m, load(x + j));
        m2 = larger(m2, load(x + j + WIDTH));
    }
    if (j + WIDTH <= n) {
        m = larger(m, load(x + j));
        j += WIDTH;
    }
    if (j < n) m2 = larger(m2, load_part_or(x + j, n - j, m2));
    return largest(larger(m, m2));
}

static float simd_exp_sum(float *x, size_t n) {
    vec m = set(simd_max(x, n)), nothing = set(-INFINITY); /* whose exp is 0 */
    lanes sums = zero();
    for (size_t j = 0, end; j < n; j = end) {
        lanes block = zero();
        end = n - j < L2C_SUM_BLOCK ? n : j + L2C_SUM_BLOCK;
        for (; j + LANES <= end; j += LANES)
            UNROLL for (int k = 0; k < REGISTERS; k++) {
                vec e = exp_of(subtract(load(x + j + k * WIDTH), m));
                store(x + j + k * WIDTH, e);
                block.v[k] = add(block.v[k], e);
            }
        UNROLL for (size_t k = 0; k < REGISTERS; k++, j += WIDTH) {
            if (j >= end) break;
            vec e = exp_of(subtract(load_part_or(x + j, n - j, nothing), m));
            store_part(x + j, e, n - j);
            block.v[k] = add(block.v[k], e);
        }
        UNROLL for (int k = 0; k < REGISTERS; k++) sums.v[k] = add(sums.v[k], block.v[k]);
    }
    return sum_lanes(sums);
}

static void simd_softmax(float *x, size_t n) {
    vec sum = set(simd_exp_sum(x, n)), least = multiply(sum, set(FLT_MIN));
#define STEP(j, left, whole)                                                  \
    do {                                                                      \
        vec e = get(x + j, left, whole);                                      \
        put(x + j, divide(zero_below(e, e, least), sum), left, whole);        \
    } while (0)
    EACH_VECTOR(n, STEP); /* zeros before the division: a denormal quotient would be slow */
#undef STEP
}

static void simd_swiglu(float *gate, const float *up, size_t n) {
    const vec one = set(1.0f);
#define STEP(j, left, whole)                                                                            \
    do {                                                                                                \
        vec g = get(gate + j, left, whole), sigmoid = divide(one, add(one, exp_of(negate(g))));         \
        put(gate + j, multiply(multiply(g, sigmoid), get(up + j, left, whole)), left, whole);           \
    } while (0)
    EACH_VECTOR(n, STEP);
#undef STEP
}

/* ---- Weighted sums ---------------------------------------------------------------------------------- */

/* s += weight * values, of `registers` registers of neighbouring columns; the last one has `last` columns. */
INLINE void sum_step(vec *s, float weight, const float *values, size_t last, int whole, int registers) {
    vec w = set(weight);
    UNROLL for (int k = 0; k + 1 < registers; k++) s[k] = multiply_add(w, load(values + k * WIDTH), s[k]);
    int k = registers - 1;
    s[k] = multiply_add(w, get(values + k * WIDTH, last, whole), s[k]);
}

/* A block's sums of these columns stay in registers, those of n_rows rows of weights at once:
 * they share the loads, and one alone would wait for its own additions. */
INLINE void sum_columns(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t step,
                        const float *values, ptrdiff_t n, size_t width, int accumulate, size_t last, int whole,
                        int registers, int n_rows) {
    vec s[SUM_ROWS][64 / WIDTH];
    size_t common = l2c_in_block(n, 0, 0);
    UNROLL for (int r = 0; r < n_rows; r++)
        UNROLL for (int k = 0; k < registers; k++) s[r][k] = set(0.0f);
    for (size_t t = 0; t < common; t++)
        UNROLL for (int r = 0; r < n_rows; r++)
            sum_step(s[r], weights[(size_t)r * weights_stride + t], values + t * width, last, whole, registers);
    UNROLL for (int r = 1; r < n_rows; r++)
        for (size_t t = common; t < l2c_in_block(n, (size_t)r, step); t++)
            sum_step(s[r], weights[(size_t)r * weights_stride + t], values + t * width, last, whole, registers);
    UNROLL for (int r = 0; r < n_rows; r++) {
        float *to = out + (size_t)r * out_stride, *end = to + (registers - 1) * WIDTH;
        if (l2c_in_block(n, (size_t)r, step) == 0) continue;
        if (accumulate) {
            UNROLL for (int k = 0; k + 1 < registers; k++) s[r][k] = add(load(to + k * WIDTH), s[r][k]);
            s[r][registers - 1] = add(get(end, last, whole), s[r][registers - 1]);
        }
        UNROLL for (int k = 0; k + 1 < registers; k++) store(to + k * WIDTH, s[r][k]);
        put(end, s[r][registers - 1], last, whole);
    }
}

static void simd_weighted_sum(float *out, size_t out_stride, const float *weights, size_t weights_stride, size_t n_rows,
                              size_t step, const float *values, ptrdiff_t n, size_t width, int accumulate) {
    for (size_t r = 0, some; r < n_rows; r += some) {
        some = n_rows - r >= SUM_ROWS ? SUM_ROWS : 1;
        for (size_t i = 0, taken; i < width; i += taken) {
            size_t left = width - i, n_registers = MASKED ? (left + WIDTH - 1) / WIDTH : left / WIDTH;
#define SUM(registers, whole, n_rows)                                                                      \
    sum_columns(out + r * out_stride + i, out_stride, weights + r * weights_stride, weights_stride, step, \
                values + i, n + (ptrdiff_t)(r * step), width, accumulate,                                 \
                left < taken ? left - taken + WIDTH : WIDTH, whole, registers, n_rows)
#define SUM_OF(registers, whole)                                 \
    do {                                                         \
        taken = (registers) * WIDTH;                             \
        if (some == SUM_ROWS) SUM(registers, whole, SUM_ROWS);   \
        else SUM(registers, whole, 1);                           \
    } while (0)
            if (n_registers >= 64 / WIDTH) SUM_OF(64 / WIDTH, !MASKED);
            else if (n_registers >= 48 / WIDTH) SUM_OF(48 / WIDTH, !MASKED);
            else if (n_registers >= 32 / WIDTH) SUM_OF(32 / WIDTH, !MASKED);
            else if (n_registers >= 1) SUM_OF(1, !MASKED);
            else SUM_OF(1, 0);
#undef SUM_OF
#undef SUM
        }
    }
}

#define L2C_SIMD_KERNELS                                                                       \
    .dot = simd_dot, .matmul = simd_matmul, .exp = simd_exp, .exp_sum = simd_exp_sum,          \
    .softmax = simd_softmax, .max = simd_max, .swiglu = simd_swiglu, .weighted_sum = simd_weighted_sum
