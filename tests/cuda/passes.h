/*
 * passes.h - a session on the emulated card: its memory, and a pass as params.h describes it.
 */
#pragma once
#include <memory>
#include <vector>

#include "check.h"

struct device_layer {
    std::unique_ptr<device_matrix> matrices[7]; /* in the order of ORACLE_WQ and so on */
    std::unique_ptr<buffer<float>> norms[2];
};

class device_session {
  public:
    device_session(const l2c_model *model, const oracle_shape &shape, int sequences, int n_ctx, l2c_kv kv, int max_rows);
    /* A kernel a phase. */
    void forward(const std::vector<l2c_row> &rows);
    /* The same by a decode kernel, up to 8 rows. With draws, goes on for `steps` sweeps; returns how many were done,
     * whose tokens are then at the beginning of `tokens` (steps, draws). */
    int decode(const std::vector<l2c_row> &rows, const std::vector<l2c_gpu_draw> &draws, const std::vector<float> &coins,
               const std::vector<int> &ends, int steps, int cancel, std::vector<int> &tokens);
    /* The same for any number of stories, a row each, by a kernel a phase: `steps` sweeps on the stream, story i being
     * told draws[i].left tokens at most. */
    void tell(const std::vector<l2c_row> &rows, const std::vector<l2c_gpu_draw> &draws, const std::vector<float> &coins,
              const std::vector<int> &ends, int steps, std::vector<int> &tokens);
    const float *logits(int i) const { return pass.logits + (size_t)i * pass.vocab_size; }
    /* The first n positions of a sequence's heads, (n_layers, n_kv_heads, n, head_size) keys, then values. */
    std::vector<unsigned char> saved(int sequence, int n);

    l2c_gpu_pass pass; /* what does not change from call to call */

  private:
    template <class T> T *make(size_t n) {
        memory.push_back(std::make_unique<device_memory>(n * sizeof(T)));
        return (T *)memory.back()->begin();
    }
    float *make_rows(int n, int cols) { return make<float>((size_t)n * l2c_gpu_pitch(cols)); }
    l2c_gpu_quantized make_quantized(int n, int cols, int group);
    void linear(const l2c_gpu_matrix &w, const float *x, const l2c_gpu_quantized &xq, float *out, int out_pitch, int n,
                int accumulate);
    void layer(int l, int max_keys);
    int take(const std::vector<l2c_row> &call);
    void sweep(int max_keys);

    std::vector<device_layer> layers;
    std::unique_ptr<device_matrix> embedding, classifier;
    std::vector<std::unique_ptr<device_memory>> memory;
    std::unique_ptr<buffer<l2c_gpu_row>> rows; /* of the call */
};

/* Up to n_rows rows for a call, which the lengths of the sequences allow; sequences grow, or are cut. */
std::vector<l2c_row> pick_rows(std::vector<int> &lengths, int n_ctx, int vocab, int n_rows);
