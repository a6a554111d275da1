/*
 * layout.h - from weight matrices as the CPU has them (kernels.h) to those that a card's kernels read (params.h).
 */
#ifndef L2C_CUDA_LAYOUT_H
#define L2C_CUDA_LAYOUT_H

#include "internal.h"
#include "params.h"

/* What a matrix becomes, without data. float32 becomes float16 or bfloat16 where that loses nothing, which takes a look
 * at the values, by all threads of the pool (which may be NULL): what a file held in 16 bits stays so. `data` of the
 * matrix may be NULL: float32 is then taken to stay. */
l2c_gpu_matrix l2c_layout_of(const l2c_matrix *matrix, l2c_pool *pool);

/* Bytes of card memory that a matrix takes, where float32 becomes 16 bits or not. */
uint64_t l2c_layout_bytes(const l2c_matrix *matrix, int is_16_bits);

/* What an allocation's parts begin at a multiple of. */
enum { L2C_CARD_LINE = 256 };
static inline uint64_t l2c_card_lines(uint64_t bytes) { return (bytes + L2C_CARD_LINE - 1) / L2C_CARD_LINE * L2C_CARD_LINE; }

/* Strips of 16 rows; bytes of one strip's data. */
static inline size_t l2c_layout_strips(const l2c_gpu_matrix *m) { return (size_t)l2c_gpu_pieces(m->rows, L2C_GPU_STRIP); }
size_t l2c_layout_strip_bytes(const l2c_gpu_matrix *m);

/* Writes the data of strips [begin, end), the first of them at `to`. */
void l2c_layout_write(unsigned char *to, const l2c_gpu_matrix *m, const l2c_matrix *from, size_t begin, size_t end);

/* The scales of a strip of a packed matrix, which lie as they do on the card. */
const void *l2c_layout_scales(const l2c_matrix *matrix, size_t strip);

#endif
