/*
 * sampler.c - from logits to a token, by llama2.c's rule.
 *
 * temperature 0 takes the largest logit. Otherwise: divide by the temperature, softmax, draw one
 * coin in [0, 1), and take the token where the running sum of probabilities first passes it. With
 * min_p the sum runs over the kept tokens only, in the order of their ids. With top_p or top_k it runs in
 * falling order of probability, of which they keep the beginning: a heap gives up tokens until that is
 * known. Flat logits can make it long; then the candidates are sorted by the bits of their probabilities,
 * in time that does not grow with their number's logarithm.
 */
#include <math.h>
#include <string.h>

#include "internal.h"

/* ---- Random numbers: xorshift64* (Vigna 2016), as llama2.c ---------------------------------- */

static uint32_t random_u32(uint64_t *state) {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    return (uint32_t)((*state * 0x2545F4914F6CDD1Dull) >> 32);
}

/* in [0, 1), a multiple of 2^-24 */
static float random_f32(uint64_t *state) { return (float)(random_u32(state) >> 8) / 16777216.0f; }

float l2c_sampler_coin(l2c_sampler *sampler) { return random_f32(&sampler->rng_state); }

void l2c_sampler_init(l2c_sampler *sampler, uint64_t seed) {
    *sampler = (l2c_sampler){
        .temperature = 1.0f,
        .top_p = 0.9f,
        .repetition_penalty = 1.0f,
        .rng_state = seed != 0 ? seed : 0x9E3779B97F4A7C15ull,
    };
}

static l2c_status check_biases(const l2c_sampler *s, int32_t n, l2c_error *err) {
    if (s->n_biases > (size_t)n) return l2c_fail(err, L2C_ARG, "%zu biases; the vocabulary has %d", s->n_biases, n);
    for (size_t i = 0; i < s->n_biases; i++) {
        const l2c_logit_bias *b = &s->biases[i];
        if (b->token < 0 || b->token >= n)
            return l2c_fail(err, L2C_ARG, "biases[%zu]: token is %d; the vocabulary has %d", i, b->token, n);
        if (!isfinite(b->value) && b->value != -INFINITY)
            return l2c_fail(err, L2C_ARG, "biases[%zu] is %g; it must be finite, or minus infinity", i, (double)b->value);
    }
    return L2C_OK;
}

l2c_status l2c_sampler_check(const l2c_sampler *s, int32_t n, l2c_error *err) {
    /* Written so that NaN fails. */
    if (!(s->temperature >= 0.0f && s->temperature <= 3.4e38f))
        return l2c_fail(err, L2C_ARG, "temperature is %g; it must be finite and 0 or more", (double)s->temperature);
    if (!(s->top_p >= 0.0f && s->top_p <= 1.0f))
        return l2c_fail(err, L2C_ARG, "top_p is %g; it must be 0 to 1", (double)s->top_p);
    if (s->top_k < 0) return l2c_fail(err, L2C_ARG, "top_k is %d; it must be 0 or more", s->top_k);
    if (!(s->min_p >= 0.0f && s->min_p <= 1.0f))
        return l2c_fail(err, L2C_ARG, "min_p is %g; it must be 0 to 1", (double)s->min_p);
    if (!(s->repetition_penalty > 0.0f && s->repetition_penalty <= 3.4e38f))
        return l2c_fail(err, L2C_ARG, "repetition_penalty is %g; it must be finite and more than 0",
                        (double)s->repetition_penalty);
    if (!isfinite(s->presence_penalty))
        return l2c_fail(err, L2C_ARG, "presence_penalty is %g; it must be finite", (double)s->presence_penalty);
    if (!isfinite(s->frequency_penalty))
        return l2c_fail(err, L2C_ARG, "frequency_penalty is %g; it must be finite", (double)s->frequency_penalty);
    if (s->rng_state == 0) return l2c_fail(err, L2C_ARG, "rng_state is 0, which xorshift never leaves");
    return check_biases(s, n, err);
}

/* ---- Before the choice ------------------------------------------------------------------------ */

/* Minus infinity is how a caller forbids a token; NaN, plus infinity, or nothing left are errors. */
static int usable(const float *logits, int32_t n) {
    uint32_t bad = 0, any = 0;
    for (int32_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &logits[i], sizeof bits);
        uint32_t finite = (bits & 0x7F800000u) != 0x7F800000u;
        any |= finite;
        bad |= !finite & (bits != 0xFF800000u);
    }
    return any && !bad;
}

l2c_status l2c_sampler_fail_unusable(l2c_error *err) {
    return l2c_fail(err, L2C_NONFINITE, "the logits hold NaN or infinity (or forbid every token)");
}

static int32_t first_largest(const float *x, int32_t n, float largest) {
    for (int32_t i = 0; i < n; i++)
        if (x[i] == largest) return i;
    return 0; /* not reached: largest is one of them */
}

/* ---- The choice ------------------------------------------------------------------------------- */

/* Probabilities are e[i] / sum; only those that are looked at are divided. */

/* Over all tokens, in the order of their ids. */
static int32_t pick_any(const float *e, int32_t n, float sum, float coin) {
    float running = 0.0f;
    for (int32_t i = 0; i < n; i++) {
        running += e[i] / sum;
        if (coin < running) return i;
    }
    /* The sum fell short of the coin by rounding: the last token that is possible at all. */
    int32_t last = n - 1;
    while (last > 0 && e[last] / sum == 0.0f) last--;
    return last;
}

/* More probable first; of equals, the smaller id first, so that the order is one order. */
static int before(l2c_candidate a, l2c_candidate b) {
    return a.p > b.p || (a.p == b.p && a.token < b.token);
}

static void sift_down(l2c_candidate *heap, size_t n, size_t i) {
    l2c_candidate moving = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && before(heap[child + 1], heap[child])) child++;
        if (!before(heap[child], moving)) break;
        heap[i] = heap[child];
    }
    heap[i] = moving;
}

/* The tokens whose probability is at least `floor`, in the order of their ids; returns how many. */
static size_t collect(const l2c_kernels *kernels, const float *e, int32_t n, float sum_e, float floor,
                      l2c_candidate *c) {
    size_t count = 0;
    float roughly = floor * sum_e * 0.9999f; /* lets a few too many through, and saves dividing all */
    for (size_t i = 0, size = (size_t)n; i < size;) {
        i += kernels->skip_below(e + i, size - i, roughly);
        for (size_t end = size - i < L2C_SKIP_BLOCK ? size : i + L2C_SKIP_BLOCK; i < end; i++) {
            if (!(e[i] >= roughly)) continue;
            float p = e[i] / sum_e;
            c[count] = (l2c_candidate){p, (int32_t)i};
            count += p >= floor && p > 0.0f;
        }
    }
    return count;
}

static void make_heap(l2c_candidate *c, size_t count) {
    for (size_t i = count / 2; i-- > 0;) sift_down(c, count, i);
}

/* Sorts candidates that come in the order of their ids, the most probable last: radix sort, a byte at a time.
 * Probabilities are not negative, so their order is that of their bits. `spare` has room for as many. */
static void sort_rising(l2c_candidate *c, l2c_candidate *spare, size_t count) {
    enum { DIGITS = 4, VALUES = 256 };
    size_t starts[DIGITS][VALUES] = {{0}};
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, &c[i].p, sizeof bits);
        for (int d = 0; d < DIGITS; d++) starts[d][bits >> 8 * d & 255]++;
    }
    for (int d = 0; d < DIGITS; d++) {
        size_t start = 0;
        for (int v = 0; v < VALUES; v++) {
            size_t size = starts[d][v];
            starts[d][v] = start;
            start += size;
        }
        for (size_t i = 0; i < count; i++) {
            l2c_candidate moving = c[d == 0 ? count - 1 - i : i]; /* of equals, the smaller id last */
            uint32_t bits;
            memcpy(&bits, &moving.p, sizeof bits);
            spare[starts[d][bits >> 8 * d & 255]++] = moving;
        }
        l2c_candidate *from = c;
        c = spare;
        spare = from;
    }
}

enum { NONE = -1, NOT_ENOUGH = -2, TOO_LONG = -3 };

/* Picks one of the tokens that top_k and top_p keep. The last `sorted` of `count` candidates are in rising
 * order, the others below them and a heap, which gives up at most `most` more. Returns NOT_ENOUGH where there
 * are `more` candidates and the nucleus goes on with them, TOO_LONG where it goes on with the heap, NONE for
 * no candidates. */
static int32_t pick_from(const l2c_sampler *s, l2c_candidate *c, size_t count, size_t sorted, size_t most, int nucleus,
                         float coin, int more) {
    if (count == 0) return more ? NOT_ENOUGH : NONE;
    size_t limit = s->top_k > 0 && (size_t)s->top_k < count ? (size_t)s->top_k : count;
    float mass = 1.0f;
#define POP() do { l2c_candidate top = c[0]; c[0] = c[count - 1 - sorted]; c[count - 1 - sorted] = top; \
                   sorted++; sift_down(c, count - sorted, 0); } while (0)
#define KEPT(i) c[count - 1 - (i)]
    if (s->top_k > 0) {
        if (limit > sorted + most) return TOO_LONG;
        while (sorted < limit) POP();
        mass = 0.0f;
        for (size_t i = 0; i < limit; i++) mass += KEPT(i).p;
    }
    float sum = 0.0f;
    size_t length = 0;
    while (length < limit) {
        if (length == sorted) {
            if (most-- == 0) return TOO_LONG;
            POP();
        }
        sum += KEPT(length++).p;
        if (nucleus && sum > s->top_p * mass) { /* the crossing token belongs to the nucleus */
            more = 0;
            break;
        }
    }
    if (more) return NOT_ENOUGH;

    float target = coin * sum, running = 0.0f;
    for (size_t i = 0; i < length; i++) {
        running += KEPT(i).p;
        if (target < running) return KEPT(i).token;
    }
    return KEPT(length - 1).token; /* rounding */
#undef POP
#undef KEPT
}

/* The same of all tokens whose probability is at least `floor`. */
static int32_t pick_above(const l2c_sampler *s, const l2c_kernels *kernels, const float *e, int32_t n, float sum_e,
                          float floor, int nucleus, float coin, int more, l2c_candidate *c) {
    size_t count = collect(kernels, e, n, sum_e, floor, c), most = 64 + count / 16; /* which a sort costs */
    /* the likeliest has 1 / sum_e, so that the nucleus has so many at least */
    float least = s->top_k > 0 ? (float)s->top_k : s->top_p * sum_e;
    if (least <= (float)most) {
        make_heap(c, count);
        int32_t token = pick_from(s, c, count, 0, most, nucleus, coin, more);
        if (token != TOO_LONG) return token;
        collect(kernels, e, n, sum_e, floor, c);
    }
    sort_rising(c, c + n, count);
    return pick_from(s, c, count, count, 0, nucleus, coin, more);
}

/* Over the most probable tokens that top_k, top_p and min_p keep, in falling order. */
static int32_t pick_prefix(const l2c_sampler *s, const l2c_kernels *kernels, const float *e, int32_t n, float sum_e,
                           float coin, l2c_candidate *c) {
    int nucleus = s->top_p > 0.0f && s->top_p < 1.0f;
    float largest = 1.0f / sum_e; /* the largest logit's exponential is exactly 1 */
    float floor = s->min_p * largest;
    /* llama2.c: a token below (1 - top_p) / (n - 1) cannot be in the nucleus. Not so once top_k
     * has made the other probabilities count for more. */
    if (nucleus && s->top_k == 0 && n > 1) {
        float cutoff = (1.0f - s->top_p) / (float)(n - 1);
        if (cutoff > floor) floor = cutoff;
    }
    /* Most nuclei end long before that: try with few tokens first. */
    float first = nucleus && s->top_k == 0 && largest / 256.0f > floor ? largest / 256.0f : floor;
    int32_t token = pick_above(s, kernels, e, n, sum_e, first, nucleus, coin, first > floor, c);
    if (token == NOT_ENOUGH) token = pick_above(s, kernels, e, n, sum_e, floor, nucleus, coin, 0, c);
    return token >= 0 ? token : first_largest(e, n, 1.0f); /* flat logits and a tiny top_p */
}

/* Over the tokens that min_p alone keeps, in the order of their ids: at least the likeliest. */
static int32_t pick_likely(const l2c_sampler *s, const l2c_kernels *kernels, const float *e, int32_t n, float sum_e,
                           float coin, l2c_candidate *c) {
    size_t count = collect(kernels, e, n, sum_e, s->min_p * (1.0f / sum_e), c);
    float sum = 0.0f, running = 0.0f;
    for (size_t i = 0; i < count; i++) sum += c[i].p;
    for (size_t i = 0; i < count; i++) {
        running += c[i].p;
        if (coin * sum < running) return c[i].token;
    }
    return count > 0 ? c[count - 1].token : first_largest(e, n, 1.0f); /* rounding */
}

l2c_status l2c_sampler_pick(l2c_sampler *s, const l2c_kernels *kernels, float *logits, int32_t n,
                            const int32_t *history, size_t n_history, l2c_candidate *candidates, int32_t *token,
                            l2c_error *err) {
    l2c_status status = l2c_sampler_check(s, n, err);
    if (status != L2C_OK) return status;
    if (l2c_sampler_adjusts(s)) /* the candidates come later */
        l2c_sampler_adjust(s, logits, n, history, n_history, (int32_t *)(void *)candidates);
    float largest = kernels->max(logits, (size_t)n);
    int greedy = s->temperature == 0.0f || !isfinite(largest / s->temperature); /* or as good as */
    if (greedy) {
        if (!usable(logits, n)) return l2c_sampler_fail_unusable(err);
        if (s->temperature > 0.0f) l2c_sampler_coin(s); /* one coin a token, needed or not */
        *token = first_largest(logits, n, largest);
        return L2C_OK;
    }
    if (s->temperature != 1.0f)
        for (int32_t i = 0; i < n; i++) logits[i] /= s->temperature;
    float sum = kernels->exp_sum(logits, (size_t)n);
    if (!(sum >= 1.0f)) return l2c_sampler_fail_unusable(err); /* NaN, as exp_sum promises for unusable logits */
    float coin = l2c_sampler_coin(s);
    int whole = (s->top_p <= 0.0f || s->top_p >= 1.0f) && s->top_k == 0;
    *token = !whole          ? pick_prefix(s, kernels, logits, n, sum, coin, candidates)
           : s->min_p > 0.0f ? pick_likely(s, kernels, logits, n, sum, coin, candidates)
                             : pick_any(logits, n, sum, coin);
    return L2C_OK;
}
