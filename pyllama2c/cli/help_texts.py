"""What `--help` says around the list of flags: what a command is for, and how people use it; and
what those are told who type what other programs call it."""

from __future__ import annotations

GENERAL = (
    """\
Runs Llama models on the processor: GGUF files (F32, F16, BF16, Q8_0, Q4_0, Q4_1, Q4_K and others),
llama2.c's checkpoints, and known models by name, which are downloaded once. Without a command it
generates; without a model it takes the small storyteller that comes with it.""",
    """\
  pyllama2c                                       # a story by the model that comes with it
  pyllama2c stories15M -i "Once upon a time"      # a known model, downloaded the first time
  pyllama2c model.gguf -t 0.8 --max-tokens 200    # any Llama model's GGUF file
  pyllama2c chat model.gguf                       # a conversation
  pyllama2c help generate                         # everything about a command""",
)

COMMANDS: dict[str, tuple[str, str]] = {
    "generate": (
        """\
Continues a prompt: that of -i, of --file, or what a pipe sends. The story goes to standard output
as it is told, everything else to standard error. -t, -p, -s, -n, -i, -z, -m and -y are run.c's
flags with run.c's meaning; the same seed tells the same story. In a script whose standard input
somebody else holds open, say -i "" for no prompt.""",
        """\
  pyllama2c -i "The lion and the rabbit" -s 7
  pyllama2c model.gguf -i "Dear diary," --max-tokens 100 --stop "The end"
  echo "Once upon a time" | pyllama2c stories15M --json
  pyllama2c model.gguf --file prompt.txt -t 0 --logprobs
  pyllama2c -N 1000 --jsonl stories.jsonl         # many; run again, it adds those missing""",
    ),
    "chat": (
        """\
A conversation with a chat model: in the template of its GGUF file, else in Llama 2's format. Type
/help at the prompt for what else can be done there. Ctrl-C ends an answer, at the prompt the chat.
When the context is full the oldest turns leave it, and the system prompt stays; with -n the chat
ends after that many positions, as run.c's does.""",
        """\
  pyllama2c chat model.gguf
  pyllama2c chat llama2-chat.bin -z tokenizer.bin -y "Be brief."
  pyllama2c chat model.gguf --context 4096 --kv-dtype float16""",
    ),
    "bench": (
        "Measures tokens per second: of one stream, and of reading a prompt.",
        """\
  pyllama2c bench model.gguf --dtype int8
  pyllama2c bench --synthetic llama2-7b --json    # random weights: needs no file""",
    ),
    "info": (
        "Says what a model file holds, and whether it fits in this machine's memory.",
        """\
  pyllama2c info model.gguf
  pyllama2c info model.gguf --context 4096 --json""",
    ),
    "download": (
        """\
Fetches a known model and its tokenizer into the cache (PYLLAMA2C_CACHE names another folder), and
checks their SHA-256, of files that are there as well.""",
        "  pyllama2c download stories15M",
    ),
    "list": (
        "Lists the known models, with size and SHA-256, and says where each would be taken from.",
        """\
  pyllama2c list
  pyllama2c list --json""",
    ),
    "rm": (
        """\
Removes known models from the cache, and tokenizers that no other model there needs. All other
files stay, even those that only have the name of a known one.""",
        "  pyllama2c rm stories15M stories42M",
    ),
    "quantize": (
        "Writes a float32 checkpoint of llama2.c as its int8 file (version 2), for runq.c as well.",
        "  pyllama2c quantize stories15M.bin stories15M-q8.bin",
    ),
    "convert": (
        """\
Writes a folder from Hugging Face (Llama, Mistral) or Meta as one GGUF file, tokenizer and chat
template included. Needs pip install 'pyllama2c[convert]'.""",
        "  pyllama2c convert open_llama_3b open_llama_3b.gguf --dtype int8",
    ),
    "eval": (
        "Measures how well a model predicts texts: bits per byte and perplexity.",
        """\
  pyllama2c eval stories.txt -M stories15M
  pyllama2c eval stories.txt -M model.gguf --dtype int4 --json""",
    ),
    "completion": (
        """\
Prints a script by which a shell completes commands, flags, models and files. The script needs
nothing else to run; to print it takes the shtab package: pip install 'pyllama2c[completion]'.""",
        """\
  pyllama2c completion bash > ~/.local/share/bash-completion/completions/pyllama2c
  pyllama2c completion zsh > ~/.zfunc/_pyllama2c  # with fpath+=~/.zfunc before compinit
  pyllama2c completion fish > ~/.config/fish/completions/pyllama2c.fish""",
    ),
    "help": (
        "Says what a command does, as its --help; alone, which commands there are.",
        "  pyllama2c help chat",
    ),
}

ELSEWHERE = {
    **dict.fromkeys(("run", "complete", "completions"), "generate, or chat"),
    **dict.fromkeys(("pull", "fetch", "get"), "download"),
    **dict.fromkeys(("ls", "models"), "list"),
    **dict.fromkeys(("remove", "delete"), "rm"),
    "show": "info",
    "perplexity": "eval",
    "-V": "--version",
    **dict.fromkeys(("--max-new-tokens", "--max_tokens", "--n-predict"), "--max-tokens"),
    "--max-length": "--steps",
    "--text": "--prompt",
    **dict.fromkeys(("--model", "--model-path"), "only the file or name, without a flag"),
}
"""commands and flags of other programs, and what they are called here"""


def advice(word: str) -> str:
    """For a word that nothing here is called."""
    word = word.partition("=")[0]
    if word in ELSEWHERE:
        return f"; here it is {ELSEWHERE[word]}"
    return "" if word.startswith("-") else "; a prompt goes behind -i"
