/*
 * logit_hashes.c - a hash of all logits that a model computes, for each dtype, cache and instruction set:
 * what every system must print alike.
 *
 *     logit_hashes MODEL POSITIONS    a line each: dtype, cache, kernels, hash
 */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "llama2c.h"

static const char *const dtypes[] = {"auto", "float32", "int8", "int4"};
static const char *const caches[] = {"float32", "float16"};
static const char *const isas[] = {
    [L2C_ISA_SCALAR] = "scalar", [L2C_ISA_AVX2] = "avx2", [L2C_ISA_AVX512] = "avx512", [L2C_ISA_AVXVNNI] = "avxvnni",
    [L2C_ISA_NEON] = "neon", [L2C_ISA_DOTPROD] = "dotprod", [L2C_ISA_I8MM] = "i8mm",
};
enum { N_ISAS = sizeof isas / sizeof *isas };

static uint64_t fnv(uint64_t hash, const void *data, size_t size) {
    for (size_t i = 0; i < size; i++) hash = (hash ^ ((const unsigned char *)data)[i]) * 0x100000001B3u;
    return hash;
}

/* In calls of 1, 2, ... 8 rows, which other kernels compute. */
static uint64_t hash_of(l2c_session *session, const l2c_config *c, int32_t n) {
    uint64_t hash = 0xCBF29CE484222325u;
    for (int32_t at = 0, size = 1; at < n; at += size, size = size % 8 + 1) {
        l2c_row rows[8];
        size_t count = 0;
        for (int32_t i = at; i < at + size && i < n; i++)
            rows[count++] = (l2c_row){0, i, (int32_t)((7919 * (int64_t)i + 1) % c->vocab_size), 1};
        l2c_error err;
        if (l2c_session_forward(session, rows, count, &err) != L2C_OK) {
            fprintf(stderr, "%s\n", err.message);
            exit(1);
        }
        for (size_t i = 0; i < count; i++)
            hash = fnv(hash, l2c_session_logits(session, i), (size_t)c->vocab_size * sizeof(float));
    }
    return hash;
}

int main(int argc, char **argv) {
    if (argc != 3) {
        fprintf(stderr, "usage: %s MODEL POSITIONS\n", argv[0]);
        return 2;
    }
    l2c_pool *pool;
    l2c_error err;
    if (l2c_pool_create(2, &pool, &err) != L2C_OK) return 1;
    for (int dtype = 0; dtype < 4; dtype++) {
        l2c_model *model;
        l2c_status status = l2c_model_open(argv[1], (l2c_dtype)(L2C_DTYPE_AUTO + dtype), pool, &model, &err);
        if (status == L2C_UNSUPPORTED) continue; /* the file cannot give it */
        if (status != L2C_OK) {
            fprintf(stderr, "%s: %s\n", argv[1], err.message);
            return 1;
        }
        const l2c_config *c = l2c_model_config(model);
        int32_t n = atoi(argv[2]) < c->seq_len ? atoi(argv[2]) : c->seq_len;
        for (int kv = 0; kv < 2; kv++)
            for (int isa = 0; isa < N_ISAS; isa++) {
                l2c_session *session;
                if (isas[isa] == NULL) continue; /* automatic, or with other arithmetic */
                status = l2c_session_create(model, pool, 1, n, kv == 0 ? L2C_KV_FLOAT32 : L2C_KV_FLOAT16, (l2c_isa)isa,
                                            &session, &err);
                if (status == L2C_UNSUPPORTED) continue; /* this machine does not run it */
                if (status != L2C_OK) {
                    fprintf(stderr, "%s\n", err.message);
                    return 1;
                }
                printf("%s keys-%s %s %016llx\n", dtypes[dtype], caches[kv], isas[isa],
                       (unsigned long long)hash_of(session, c, n));
                l2c_session_free(session);
            }
        l2c_model_free(model);
    }
    l2c_pool_free(pool);
    return 0;
}
