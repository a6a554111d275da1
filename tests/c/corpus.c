/*
 * corpus.c - writes the fuzzers' seed corpus into the folders checkpoint/ and tokenizer/ of argv[1].
 */
#include <sys/stat.h>
#include <unistd.h>

#include "tiny.h"

static void save(const char *folder, const char *name, image im) {
    char path[512];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *f = fopen(path, "wb");
    if (f == NULL || fwrite(im.data, 1, im.size, f) != im.size || fclose(f) != 0) exit(1);
    free(im.data);
}

int main(int argc, char **argv) {
    if (argc != 2 || chdir(argv[1]) != 0) return 2;
    mkdir("checkpoint", 0755);
    mkdir("tokenizer", 0755);
    for (int i = 0; i < 6; i++) {
        l2c_config c = {.dim = 8, .hidden_dim = 12, .n_layers = 1 + i % 2, .n_heads = 2, .n_kv_heads = 1 + i % 2,
                        .vocab_size = 5, .seq_len = 4, .version = i / 2, .shared_classifier = i % 2,
                        .group_size = i / 2 == 2 ? 4 : 0};
        char name[16];
        snprintf(name, sizeof name, "v%d-%d", i / 2, i % 2);
        save("checkpoint", name, tiny_checkpoint(&c));
    }
    const char *texts[] = {"abc aaaaaaab", "", "\xC3\xA9 \xE2\x96\x81<s>", "\x80\xFF\n"};
    for (int i = 0; i < 4; i++) {
        image tokenizer = tiny_tokenizer(), im = {0};
        unsigned char length[2] = {(unsigned char)tokenizer.size, (unsigned char)(tokenizer.size >> 8)};
        put(&im, length, 2);
        put(&im, tokenizer.data, tokenizer.size);
        put(&im, texts[i], strlen(texts[i]));
        free(tokenizer.data);
        char name[16];
        snprintf(name, sizeof name, "text-%d", i);
        save("tokenizer", name, im);
    }
    return 0;
}
