/*
 * sample.cuh - from a row of logits to a token, by csrc/sampler.c's rule and with the host's coin; and what
 * log-probabilities are computed from. A block a row.
 *
 * Probabilities are exp(logit / temperature - largest) / sum, computed anew wherever they are looked at: the logits
 * stay as they are, and what is not settled here (more than CANDIDATES tokens to sort) the host draws from them.
 */
#ifndef L2C_CUDA_SAMPLE_CUH
#define L2C_CUDA_SAMPLE_CUH

#include "attention.cuh"

/* How a block's shared memory is used. */
struct sample_memory {
    float *scratch;          /* (32) a float a warp */
    int *count, *token;      /* candidates; what the first thread decided */
    unsigned long long *keys; /* (CANDIDATES) */
    float *partial;          /* (2, blockDim.x) */
};

DEVICE sample_memory sample_memory_of() {
    unsigned char *at = shared_memory();
    return sample_memory{(float *)at, (int *)(at + 128), (int *)(at + 132), (unsigned long long *)(at + 256),
                         (float *)(at + 256 + 8 * L2C_GPU_CANDIDATES)};
}

/* A row as the choice sees it. */
struct distribution {
    const float *logits;
    int n;
    const uint32_t *allowed, *seen; /* these three as l2c_gpu_draw has them */
    float penalty;
    float temperature, largest, sum; /* largest: after the division */
};

DEVICE bool has_bit(const uint32_t *bits, int i) { return bits[i / 32] >> (i % 32) & 1; }

/* As the mask and the penalty leave it. */
DEVICE float logit_at(const distribution &d, int i) {
    float x = d.logits[i];
    if (d.allowed != nullptr && !has_bit(d.allowed, i)) return MINUS_INFINITY;
    if (d.seen != nullptr && has_bit(d.seen, i)) x = x > 0.0f ? x / d.penalty : x * d.penalty;
    return x;
}

DEVICE float tempered(const distribution &d, int i) {
    return d.temperature == 1.0f ? logit_at(d, i) : logit_at(d, i) / d.temperature;
}
DEVICE float exp_at(const distribution &d, int i) { return exp_of(tempered(d, i) - d.largest); }
DEVICE float probability(const distribution &d, int i) { return exp_at(d, i) / d.sum; }

/* The least, or the largest, of what a block's threads bring, in all threads. */
DEVICE int block_least(int x, float *scratch) {
    UNROLL_ALL for (int half = WARP / 2; half > 0; half /= 2) {
        int other = __shfl_xor_sync(EVERY_LANE, x, half);
        x = other < x ? other : x;
    }
    __syncthreads(); /* the scratch may still be read */
    if (threadIdx.x % WARP == 0) scratch[threadIdx.x / WARP] = __int_as_float(x);
    __syncthreads();
    for (unsigned i = 0; i < blockDim.x / WARP; i++) {
        int other = __float_as_int(scratch[i]);
        x = other < x ? other : x;
    }
    return x;
}

/* The first token whose value is `wanted`, n if there is none; value(i) of token i. */
template <class Value> DEVICE int first_equal(int n, float wanted, float *scratch, Value value) {
    int first = n;
    for (int i = threadIdx.x; i < n && first == n; i += blockDim.x)
        if (value(i) == wanted) first = i;
    return block_least(first, scratch);
}

/* ---- Over all tokens, in the order of their ids ------------------------------------------------------------- */

/* The sum goes one by one, so one thread takes it, of what the others compute. */
DEVICE int pick_any(const distribution &d, float coin, const sample_memory &m) {
    float *p = (float *)m.keys, running = 0.0f;
    enum { AT_ONCE = 2 * L2C_GPU_CANDIDATES };
    for (int begin = 0; begin < d.n; begin += AT_ONCE) {
        int now = d.n - begin < AT_ONCE ? d.n - begin : AT_ONCE;
        for (int i = threadIdx.x; i < now; i += blockDim.x) p[i] = probability(d, begin + i);
        __syncthreads();
        if (threadIdx.x == 0) {
            int i = 0;
            for (; i < now; i++) {
                running += p[i];
                if (coin < running) break;
            }
            *m.token = i < now ? begin + i : -1;
        }
        __syncthreads();
        if (*m.token >= 0) return *m.token;
    }
    /* The sum fell short of the coin by rounding: the last token that is possible at all. */
    int last = 0;
    for (int i = threadIdx.x; i < d.n; i += blockDim.x)
        if (probability(d, i) != 0.0f) last = i;
    return -block_least(-last, m.scratch);
}

/* ---- Over the likeliest ------------------------------------------------------------------------------------- */

/* A candidate's key: more probable first; of equals, the smaller id first. */
DEVICE unsigned long long key_of(float p, int id) {
    return (unsigned long long)__float_as_uint(p) << 32 | ~(unsigned)id;
}
DEVICE float key_probability(unsigned long long key) { return __uint_as_float((unsigned)(key >> 32)); }
DEVICE int key_token(unsigned long long key) { return (int)~(unsigned)key; }

/* Tokens whose probability is at least `floor`, in any order. Returns how many; CANDIDATES at most are kept. */
DEVICE int collect(const distribution &d, float floor, const sample_memory &m) {
    __syncthreads();
    if (threadIdx.x == 0) *m.count = 0;
    __syncthreads();
    for (int i = threadIdx.x; i < d.n; i += blockDim.x) {
        float p = probability(d, i);
        if (!(p >= floor && p > 0.0f)) continue;
        int at = atomicAdd(m.count, 1);
        if (at < L2C_GPU_CANDIDATES) m.keys[at] = key_of(p, i);
    }
    __syncthreads();
    return *m.count;
}

/* Sorts count keys, the largest first or, by_id, by their tokens, rising. Bitonic sort (Batcher 1968). */
DEVICE void sort_keys(unsigned long long *keys, int count, int by_id) {
    int size = 32;
    while (size < count) size *= 2;
    for (int i = count + threadIdx.x; i < size; i += blockDim.x) keys[i] = 0; /* after all others in either order */
    __syncthreads();
    for (int span = 2; span <= size; span *= 2)
        for (int distance = span / 2; distance > 0; distance /= 2) {
            for (int i = threadIdx.x; i < size; i += blockDim.x) {
                int j = i ^ distance;
                if (j <= i) continue;
                unsigned long long a = keys[i], b = keys[j];
                int rising = by_id ? (unsigned)a < (unsigned)b : a < b; /* ~id: the larger, the earlier */
                int falling = by_id ? (unsigned)a > (unsigned)b : a > b;
                if ((i & span) == 0 ? rising : falling) keys[i] = b, keys[j] = a;
            }
            __syncthreads();
        }
}

enum { NOT_ENOUGH = -3 }; /* candidates; and of L2C_GPU_HOST and others */

/* One of the tokens that top_k and top_p keep of count sorted candidates, by one thread. `more`: there are others below
 * them. sampler.c's pick_from, in the same order. */
DEVICE int pick_from(const l2c_gpu_draw &draw, const unsigned long long *keys, int count, int nucleus, int more,
                     int n) {
    int limit = draw.top_k > 0 && draw.top_k < count ? draw.top_k : count, length = 0;
    if (count == 0) return more ? NOT_ENOUGH : n; /* n: no candidates */
    if (draw.top_k > 0 && more && count < draw.top_k) return NOT_ENOUGH;
    float mass = 1.0f, sum = 0.0f, running = 0.0f;
    if (draw.top_k > 0) {
        more = 0;
        mass = 0.0f;
        for (int i = 0; i < limit; i++) mass += key_probability(keys[i]);
    }
    while (length < limit) {
        sum += key_probability(keys[length++]);
        if (nucleus && sum > draw.top_p * mass) {
            more = 0;
            break;
        }
    }
    if (more) return NOT_ENOUGH;
    float target = draw.coin * sum;
    for (int i = 0; i < length; i++) {
        running += key_probability(keys[i]);
        if (target < running) return key_token(keys[i]);
    }
    return key_token(keys[length - 1]);
}

/* Over the most probable tokens that top_k, top_p and min_p keep, in falling order. Any floor that leaves all of those
 * among the candidates gives the same token: the first one leaves few to sort, the last one is the rule's. */
DEVICE int pick_prefix(const distribution &d, const l2c_gpu_draw &draw, const sample_memory &m) {
    int nucleus = draw.top_p > 0.0f && draw.top_p < 1.0f;
    float largest = 1.0f / d.sum, rule = draw.min_p * largest, tried = largest / 256.0f;
    if (nucleus && draw.top_k == 0 && d.n > 1) {
        float cutoff = (1.0f - draw.top_p) / (float)(d.n - 1);
        if (cutoff > rule) rule = cutoff;
    }
    for (int attempt = 0, flat = 0; attempt < 4; attempt++) {
        float floor = attempt == 3 || tried < rule ? rule : tried;
        int more = floor > rule, count = collect(d, floor, m);
        if (count > L2C_GPU_CANDIDATES) {
            if (attempt > 0) return L2C_GPU_HOST;
            flat = 1;
            tried = largest / 16.0f; /* where even this leaves too few, the host must do it */
            continue;
        }
        sort_keys(m.keys, count, 0);
        if (threadIdx.x == 0) *m.token = pick_from(draw, m.keys, count, nucleus, more, d.n);
        __syncthreads();
        int token = *m.token;
        if (token == d.n) return first_equal(d.n, 1.0f, m.scratch, [&](int i) { return exp_at(d, i); });
        if (token != NOT_ENOUGH) return token;
        if (flat) return L2C_GPU_HOST;
        tried = tried / 16.0f;
    }
    return L2C_GPU_HOST;
}

/* Over the tokens that min_p alone keeps, in the order of their ids. */
DEVICE int pick_likely(const distribution &d, const l2c_gpu_draw &draw, const sample_memory &m) {
    int count = collect(d, draw.min_p * (1.0f / d.sum), m);
    if (count > L2C_GPU_CANDIDATES) return L2C_GPU_HOST;
    if (count == 0) return first_equal(d.n, 1.0f, m.scratch, [&](int i) { return exp_at(d, i); });
    sort_keys(m.keys, count, 1);
    if (threadIdx.x == 0) {
        float sum = 0.0f, running = 0.0f;
        int i = 0;
        for (int j = 0; j < count; j++) sum += key_probability(m.keys[j]);
        for (; i < count - 1; i++) {
            running += key_probability(m.keys[i]);
            if (draw.coin * sum < running) break;
        }
        *m.token = key_token(m.keys[i]);
    }
    __syncthreads();
    return *m.token;
}

/* ---- The choice ---------------------------------------------------------------------------------------------- */

/* The token, or L2C_GPU_HOST or L2C_GPU_UNUSABLE, in all threads. */
DEVICE int pick(const float *logits, int n, const l2c_gpu_draw &draw) {
    sample_memory m = sample_memory_of();
    distribution d = {logits, n, draw.allowed, draw.seen, draw.penalty, draw.temperature, 0.0f, 0.0f};
    float largest = MINUS_INFINITY;
    int unusable = 0, any = 0;
    for (int i = threadIdx.x; i < n; i += blockDim.x) {
        float x = logit_at(d, i);
        unsigned bits = __float_as_uint(x);
        any |= !bits_not_finite(bits);
        unusable |= bits_not_finite(bits) && bits != 0xFF800000u; /* minus infinity forbids a token */
        largest = x > largest ? x : largest;
    }
    largest = block_max(largest, m.scratch);
    unusable = __syncthreads_or(unusable);
    if (unusable | !__syncthreads_or(any)) return L2C_GPU_UNUSABLE;
    d.largest = draw.temperature == 0.0f ? largest : largest / draw.temperature; /* division keeps the order */
    if (draw.temperature == 0.0f || bits_not_finite(__float_as_uint(d.largest)))
        return first_equal(n, largest, m.scratch, [&](int i) { return logit_at(d, i); });
    d.sum = sum_of_exps(n, m.partial, [&](int i) { return exp_at(d, i); });
    if (!(d.sum >= 1.0f)) return L2C_GPU_UNUSABLE;
    if ((draw.top_p > 0.0f && draw.top_p < 1.0f) || draw.top_k > 0) return pick_prefix(d, draw, m);
    return draw.min_p > 0.0f ? pick_likely(d, draw, m) : pick_any(d, draw.coin, m);
}

/* The token of story i goes on as the next one of its row, by one thread. */
DEVICE void go_on(const l2c_gpu_sample &p, int i, int left, int token) {
    bool end = token < 0;
    for (int e = 0; e < p.n_ends; e++) end |= token == p.ends[e];
    p.tokens[(size_t)p.step * p.n + i] = token;
    p.draws[i].left = end ? 0 : left - 1;
    if (end || left == 1) return;
    p.rows[i].token = token;
    p.rows[i].position++;
}

/* Draw i, by a block. */
DEVICE void draw_token(const l2c_gpu_sample &p, int i) {
    l2c_gpu_draw draw = p.draws[i];
    if (p.rows != nullptr) {
        if (draw.left == 0) return;
        draw.coin = p.coins[(size_t)p.step * p.n + i];
    }
    int token = pick(p.logits + (size_t)draw.row * p.vocab_size, p.vocab_size, draw);
    if (threadIdx.x != 0) return;
    p.draws[i].token = token;
    if (p.rows != nullptr) go_on(p, i, draw.left, token);
}

/* ---- Log-probabilities ---------------------------------------------------------------------------------------- */

/* The largest of a row and the sum of its exps in double, in 16 lanes, by a block. */
DEVICE l2c_gpu_log_total log_total(const float *logits, int n) {
    float *scratch = (float *)shared_memory(), *e = scratch + 64, largest = MINUS_INFINITY;
    for (int i = threadIdx.x; i < n; i += blockDim.x) largest = logits[i] > largest ? logits[i] : largest;
    largest = block_max(largest, scratch);
    double lane = 0.0; /* in the first warp */
    int span = blockDim.x;
    for (int begin = 0, side = 0; begin < n; begin += span, side ^= 1) {
        float *some = e + side * span;
        if (begin + (int)threadIdx.x < n) some[threadIdx.x] = exp_of(logits[begin + threadIdx.x] - largest);
        __syncthreads();
        int now = n - begin < span ? n - begin : span;
        if (threadIdx.x < WARP)
            for (int j = threadIdx.x % LANES; j < now; j += LANES) lane += (double)some[j];
    }
    if (threadIdx.x < WARP) lane = sum_lanes(lane);
    return l2c_gpu_log_total{lane, largest, 0.0f};
}

#endif
