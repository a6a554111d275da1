/*
 * kernels.cu - the entry points: a kernel a phase (params.h says in which order, and how each is started), and the
 * kernels that do whole passes.
 */
#include "decode.cuh"

KERNEL(embed, l2c_gpu_pass, L2C_GPU_BLOCK) { embed_row(p, blockIdx.x); }

KERNEL(norm, l2c_gpu_norm, L2C_GPU_BLOCK) { norm_row(p, blockIdx.x, (float *)shared_memory()); }

KERNEL(quantize, l2c_gpu_quantize, L2C_GPU_BLOCK) { quantize_columns(p, blockIdx.y, blockIdx.x); }

/* Products, by the matrix's type and the rows: up to 8; more; up to 64 or 128 in a block. */
enum { FEW_THREADS = L2C_GPU_FEW_WARPS * WARP };
KERNEL(linear_f32_8, l2c_gpu_linear, FEW_THREADS) { dense_few<L2C_GPU_F32>(p); }
KERNEL(linear_f16_8, l2c_gpu_linear, FEW_THREADS) { dense_few<L2C_GPU_F16>(p); }
KERNEL(linear_bf16_8, l2c_gpu_linear, FEW_THREADS) { dense_few<L2C_GPU_BF16>(p); }
KERNEL(linear_q8_8, l2c_gpu_linear, FEW_THREADS) { packed_few<L2C_GPU_Q8>(p); }
KERNEL(linear_q4_8, l2c_gpu_linear, FEW_THREADS) { packed_few<L2C_GPU_Q4>(p); }
KERNEL(linear_q4_1_8, l2c_gpu_linear, FEW_THREADS) { packed_few<L2C_GPU_Q4_1>(p); }
KERNEL(linear_f32, l2c_gpu_linear, L2C_GPU_BLOCK) { dense_many<L2C_GPU_F32>(p); }
KERNEL(linear_f16, l2c_gpu_linear, L2C_GPU_BLOCK) { dense_many<L2C_GPU_F16>(p); }
KERNEL(linear_bf16, l2c_gpu_linear, L2C_GPU_BLOCK) { dense_many<L2C_GPU_BF16>(p); }
KERNEL(linear_q8_64, l2c_gpu_linear, L2C_GPU_BLOCK) {
    if (p.w.chunks > 1) packed_block<L2C_GPU_Q8, 8, true>(p);
    else packed_block<L2C_GPU_Q8, 8, false>(p);
}
KERNEL(linear_q4_64, l2c_gpu_linear, L2C_GPU_BLOCK) { packed_block<L2C_GPU_Q4, 8, false>(p); }
KERNEL(linear_q4_1_64, l2c_gpu_linear, L2C_GPU_BLOCK) { packed_block<L2C_GPU_Q4_1, 8, false>(p); }
KERNEL(linear_q8_128, l2c_gpu_linear, L2C_GPU_BLOCK) { packed_block<L2C_GPU_Q8, 16, false>(p); }

KERNEL(store_kv, l2c_gpu_pass, L2C_GPU_BLOCK) { store_kv_row(p, blockIdx.x); }

KERNEL(attention, l2c_gpu_pass, L2C_GPU_BLOCK) {
    for (int i = blockIdx.x; i < p.n * p.n_heads; i += gridDim.x) attend_head(p, p.layer, i / p.n_heads, i % p.n_heads);
}

KERNEL(swiglu, l2c_gpu_swiglu, L2C_GPU_BLOCK) { swiglu_columns(p, blockIdx.y, blockIdx.x); }

KERNEL(sample, l2c_gpu_sample, L2C_GPU_SAMPLE_BLOCK) { draw_token(p, blockIdx.x); }

KERNEL(logprob, l2c_gpu_logprob, L2C_GPU_BLOCK) {
    l2c_gpu_log_total total = log_total(p.logits + (size_t)blockIdx.x * p.vocab_size, p.vocab_size);
    if (threadIdx.x == 0) p.totals[blockIdx.x] = total;
}

KERNEL(cache_read, l2c_gpu_cache, L2C_GPU_BLOCK) { move_cache<CACHE_READ>(p); }
KERNEL(cache_write, l2c_gpu_cache, L2C_GPU_BLOCK) { move_cache<CACHE_WRITE>(p); }
KERNEL(cache_copy, l2c_gpu_cache, L2C_GPU_BLOCK) { move_cache<CACHE_COPY>(p); }

KERNEL(decode_1, l2c_gpu_decode, L2C_GPU_BLOCK) { decode<1>(p); }
KERNEL(decode_8, l2c_gpu_decode, L2C_GPU_BLOCK) { decode<8>(p); }
