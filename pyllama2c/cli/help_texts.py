"""What `--help` says around the list of flags: what a command is for, and how people use it; and
answers to what other programs call things."""

from __future__ import annotations

GENERAL = (
    """\
Runs Llama models on the processor or an NVIDIA card: GGUF files (F32, F16, BF16, Q8_0, Q4_0, Q4_1,
Q4_K and others), llama2.c's checkpoints, known models by name and those of the Hugging Face hub by
hf://owner/name, which are downloaded once. Without a command it generates; without a model it takes
the small storyteller that comes with it.""",
    """\
  pyllama2c                                       # a story by the model that comes with it
  pyllama2c stories15M -i "Once upon a time"      # a known model, downloaded the first time
  pyllama2c model.gguf -t 0.8 --max-tokens 200    # any Llama model's GGUF file
  pyllama2c chat hf://owner/name/model.gguf       # one of the Hugging Face hub
  pyllama2c chat model.gguf                       # a conversation
  pyllama2c help generate                         # everything about a command""",
)

COMMANDS: dict[str, tuple[str, str]] = {
    "generate": (
        """\
Continues a prompt: that of -i, of --file, or what a pipe sends. The story goes to standard output
as it is generated, everything else to standard error. -t, -p, -s, -n, -i, -z, -m and -y are run.c's
flags and mean what they mean there; the same seed gives the same story. Where standard input is a
pipe that stays open, as in some scripts, pass -i "" for no prompt. Processes or machines that each
tell a --shard of one run, with the same --seed, write the lines of that run: to join them,
sort -nk2,2 part?.jsonl > stories.jsonl""",
        """\
  pyllama2c -i "The lion and the rabbit" -s 7
  pyllama2c model.gguf -i "Dear diary," --max-tokens 100 --stop "The end"
  echo "Once upon a time" | pyllama2c stories15M --json
  pyllama2c model.gguf --file prompt.txt -t 0 --logprobs 3
  pyllama2c model.gguf --presence-penalty 0.5 --logit-bias 29991=-inf  # without token 29991
  pyllama2c model.gguf -i "A user: " --json-schema user.schema.json
  pyllama2c -N 1000 --jsonl stories.jsonl         # run again, it adds what is missing
  pyllama2c -N 1000 -s 1 --shard 0/7 --jsonl part0.jsonl  # and 1/7 to 6/7 on other machines""",
    ),
    "chat": (
        """\
A conversation with a chat model, by the chat template in its GGUF file or in Llama 2's format. At
the prompt, /help lists the chat's own commands; Ctrl-C stops an answer, and at the prompt ends the
chat. When the context is full, the oldest turns are dropped from it and the system prompt stays;
with -n the chat ends after that many positions, as in run.c.""",
        """\
  pyllama2c chat model.gguf
  pyllama2c chat llama2-chat.bin -z tokenizer.bin -y "Be brief."
  pyllama2c chat model.gguf --context 4096 --kv-dtype float16""",
    ),
    "bench": (
        "Measures tokens per second, for reading a prompt and for generating one story.",
        """\
  pyllama2c bench model.gguf --dtype int8
  pyllama2c bench --synthetic llama2-7b --json    # random weights: needs no file""",
    ),
    "info": (
        "Shows what a model file holds, and whether it fits in this machine's memory.",
        """\
  pyllama2c info model.gguf
  pyllama2c info model.gguf --context 4096 --json""",
    ),
    "download": (
        """\
Downloads a known model and its tokenizer to the cache folder (PYLLAMA2C_CACHE names another) and
checks their SHA-256, even if they are there already. Of a model on the Hugging Face hub it gets the
current commit, which is then opened until the next download.""",
        """\
  pyllama2c download stories15M
  pyllama2c download hf://owner/name              # or hf://owner/name@revision/file.gguf""",
    ),
    "list": (
        """\
Lists the known models, and those of the Hugging Face hub that were opened here, with their sizes
and SHA-256 or commits, and which of them are on this disk.""",
        """\
  pyllama2c list
  pyllama2c list --json""",
    ),
    "rm": (
        """\
Removes known models from the cache, and tokenizers that no other model there needs. Other files
stay, even if one has the name of a known file. Of a model of the hub it removes the converted file
and the record of its commit; downloads stay, as other programs use them.""",
        """\
  pyllama2c rm stories15M stories42M
  pyllama2c rm hf://owner/name                    # or hf://owner/name@revision""",
    ),
    "quantize": (
        "Writes a float32 llama2.c checkpoint as int8 (version 2), which runq.c reads as well.",
        "  pyllama2c quantize stories15M.bin stories15M-q8.bin",
    ),
    "convert": (
        """\
Converts a Hugging Face (Llama, Mistral) or Meta folder to one GGUF file, with its tokenizer and
chat template. Needs pip install 'pyllama2c[convert]'.""",
        "  pyllama2c convert open_llama_3b open_llama_3b.gguf --dtype int8",
    ),
    "eval": (
        "Measures how well a model predicts texts: bits per byte and perplexity.",
        """\
  pyllama2c eval stories.txt -M stories15M
  pyllama2c eval stories.txt -M model.gguf --dtype int4 --json""",
    ),
    "serve": (
        """\
Answers HTTP requests as OpenAI's API and llama.cpp's server do, many at a time: the same seed gives
the same text under any load. Ctrl-C lets the requests under way end; a second one ends them. Needs
pip install 'pyllama2c[serve]'; docs/serve.md has examples.""",
        """\
  pyllama2c serve                                 # the small storyteller
  pyllama2c serve model.gguf --port 8000 --context 4096
  pyllama2c serve model.gguf --host 0.0.0.0 --api-key-file key.txt""",
    ),
    "verify": (
        """\
Tells the story of a receipt (`"receipt": true` in a request to the server) again, on this machine,
and says "identical", or where it parts.""",
        """\
  pyllama2c verify receipt.json
  pyllama2c verify receipt.json model.gguf""",
    ),
    "page": (
        """\
Writes one HTML file with engine, model and tokenizer in it. Opened in a browser, from the disk and
offline, it tells stories and shows how each word was chosen: the server's page without a server.
The same seed gives the same story. Byte-level tokenizers and models above 256 MiB do not work.""",
        """\
  pyllama2c page story.html                       # the small storyteller: 4.4 MB
  pyllama2c page story.html model.gguf --context 1024""",
    ),
    "completion": (
        """\
Prints a script with which your shell completes commands, flags, models and files. Printing it takes
the shtab package (pip install 'pyllama2c[completion]'); using it does not.""",
        """\
  pyllama2c completion bash > ~/.local/share/bash-completion/completions/pyllama2c
  pyllama2c completion zsh > ~/.zfunc/_pyllama2c  # with fpath+=~/.zfunc before compinit
  pyllama2c completion fish > ~/.config/fish/completions/pyllama2c.fish""",
    ),
    "help": (
        "Shows what a command does, like its --help, or lists the commands.",
        "  pyllama2c help chat",
    ),
}

ELSEWHERE = {
    **dict.fromkeys(("run", "ask", "complete", "completions", "prompt"), "generate or chat"),
    **dict.fromkeys(("pull", "fetch", "get"), "download"),
    **dict.fromkeys(("ls", "models"), "list"),
    **dict.fromkeys(("remove", "delete"), "rm"),
    **dict.fromkeys(("show", "inspect"), "info"),
    **dict.fromkeys(("create", "import"), "convert"),
    "perplexity": "eval",
    "-V": "--version",
    **dict.fromkeys(
        ("--max-new-tokens", "--max_tokens", "--n-predict", "--num-predict"), "--max-tokens"
    ),
    "--max-length": "--steps",
    **dict.fromkeys(("--text", "--prompt-text"), "--prompt"),
    **dict.fromkeys(("--top-logprobs", "--n-probs"), "--logprobs"),
    **dict.fromkeys(("--model", "--model-path"), "just the file or name, without a flag"),
    **dict.fromkeys(("-c", "--ctx-size", "--n-ctx", "--max-model-len"), "--context"),
    **dict.fromkeys(("--n-threads", "--num-threads"), "--threads"),
    **dict.fromkeys(("--n-gpu-layers", "--gpu-layers"), "--device cuda"),
    **dict.fromkeys(("-o", "--option"), "--temperature, --top-p and so on"),
    **dict.fromkeys(("--repeat-penalty", "--repeat_penalty"), "--repetition-penalty"),
    **dict.fromkeys(("-r", "--reverse-prompt"), "--stop"),
    **dict.fromkeys(("-cnv", "--conversation", "--interactive"), "chat"),
    "--stream": "--prompt alone: a story streams anyway",
    **dict.fromkeys(("--num-return-sequences", "--num-samples"), "--stories and --jsonl"),
}
"""commands and flags of other programs, and what to use here"""


RUN_C = {
    "-m/--mode": "-m is run.c's mode: the model is named without a flag",
    "-p/--top-p": "-p is top-p, as in run.c: prompts go after -i",
    "-t/--temperature": "-t is the temperature, as in run.c: threads go after --threads",
    "-s/--seed": "-s is the seed, as in run.c: a system prompt goes after -y",
}
"""flags that mean something else in other programs"""


def advice(word: str) -> str:
    """What to say of a word that is no command, flag or model; begins with a semicolon."""
    word = word.partition("=")[0]
    if word in ELSEWHERE:
        return f"; use {ELSEWHERE[word]}"
    return "" if word.startswith("-") else "; prompts go after -i"
