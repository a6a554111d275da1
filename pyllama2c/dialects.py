"""What other libraries call things, and what to use here: an answer where Python has only an error.

transformers, llama-cpp-python, vLLM and OpenAI's client are where most users come from. Their names
do nothing here; whoever types one is told ours.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, ClassVar, ParamSpec, TypeVar

_P = ParamSpec("_P")
_T = TypeVar("_T")


def _answers(*pairs: tuple[str, str]) -> dict[str, str]:
    """{name: answer} from ("names of other libraries", answer here) pairs."""
    return {name: answer for names, answer in pairs for name in names.split()}


MODEL_ARGUMENTS = _answers(
    ("model_path model_id model_name_or_path pretrained_model_name_or_path repo_id", "model"),
    ("n_ctx max_model_len max_seq_len context_length ctx_size max_position_embeddings", "context"),
    ("n_threads n_threads_batch num_threads", "threads"),
    ("n_gpu_layers gpu_layers device_map main_gpu", 'device: "cuda" computes all layers there'),
    ("torch_dtype load_in_8bit load_in_4bit quantization quantization_config", "dtype"),
    ("type_k type_v kv_cache_dtype cache_dtype", "kv_dtype"),
    ("draft_model assistant_model", "speculative"),
    ("chat_format chat_handler", "chat(messages), which takes the file's own template"),
    ("seed temperature", "generate's arguments"),
    ("verbose", "nothing: a Llama prints nothing"),
)

STORY_ARGUMENTS = _answers(
    ("input_ids inputs text_inputs text", "prompt"),
    ("max_new_tokens max_length max_completion_tokens n_predict num_predict", "max_tokens"),
    ("temp", "temperature"),
    ("do_sample", "temperature, where 0 is greedy"),
    ("num_return_sequences n best_of num_beams", "generate_batch([prompt], n=...)"),
    ("repeat_penalty", "repetition_penalty"),
    ("generator random_seed random_state", "seed"),
    ("eos_token_id stop_token_ids", "stop_tokens"),
    ("stop_strings stop_sequences stopping_criteria until", "stop"),
    ("stream streamer", "nothing: iterating over a story streams it, read() waits for its end"),
    ("top_logprobs", "logprobs"),
    ("response_format guided_json", "json_schema"),
    ("guided_regex", "regex"),
    ("guided_grammar", "grammar"),
    ("messages", "chat(messages)"),
    ("echo", "tokenizer.decode(story.prompt_tokens), which is what was asked"),
    ("skip_special_tokens add_generation_prompt", "nothing: control tokens are no text here"),
)

LLAMA = _answers(
    ("create_completion complete completion completions predict stream", "generate(prompt)"),
    ("create_chat_completion chat_completion apply_chat_template", "chat(messages)"),
    ("tokenize encode", "tokenizer.encode(text)"),
    ("detokenize decode batch_decode", "tokenizer.decode(ids)"),
    ("to cuda cpu half float bfloat16", "Llama(..., device=, dtype=)"),
    ("eval forward", "logits(ids)"),
    ("train requires_grad_ parameters state_dict", "PyTorch: this library only runs models"),
    ("save_state", "save_cache(path, prompt)"),
    ("load_state", "load_cache(path)"),
    ("n_ctx", "config.seq_len"),
    ("n_vocab", "config.vocab_size"),
    ("perplexity loglikelihood", "score(text)"),
    ("embed create_embedding get_input_embeddings encode_text", "another: it gives no embeddings"),
)

STORY = _answers(
    ("choices content generated_text outputs response message output_text", "text"),
    ("usage", "prompt_tokens and tokens"),
    ("token_ids sequences", "tokens"),
)

TOKENIZER = _answers(
    ("tokenize encode_plus batch_encode_plus", "encode(text)"),
    ("batch_decode detokenize convert_tokens_to_string", "decode(ids)"),
    ("apply_chat_template", "Llama.chat(messages)"),
    ("eos_token_id eos_token eos", "eos_id"),
    ("bos_token_id bos_token bos", "bos_id"),
    ("convert_ids_to_tokens id_to_piece IdToPiece", "piece(id)"),
    ("get_vocab n_vocab n_words", "vocab_size"),
)

PACKAGE = _answers(
    ("pipeline LLM AutoModelForCausalLM LlamaForCausalLM Model OpenAI Client", "Llama(model)"),
    ("AutoTokenizer LlamaTokenizer", "Llama(model).tokenizer"),
    ("SamplingParams GenerationConfig", "the arguments of Llama.generate"),
    ("generate complete chat", "Llama(model).generate(prompt)"),
    ("load load_model from_pretrained get_model", "Llama(model)"),
)


def in_our_words(what: str, answers: Mapping[str, str]) -> str:
    """The end of a message about a name of another library; empty for one that is not known."""
    return f"; use {answers[what]}" if what in answers else ""


class SuggestsNames:
    """A class whose errors for names of other libraries say ours."""

    _answers: ClassVar[Mapping[str, str]]

    if not TYPE_CHECKING:  # which would then take every name for one that is there

        def __getattr__(self, name):
            ours = in_our_words(name, self._answers)
            raise AttributeError(f"{type(self).__name__!r} object has no attribute {name!r}{ours}")


def suggests_arguments(
    answers: Mapping[str, str],
) -> Callable[[Callable[_P, _T]], Callable[_P, _T]]:
    """Gives a method's TypeError for arguments that it does not have our names for them."""

    def decorate(function: Callable[_P, _T]) -> Callable[_P, _T]:
        known = inspect.signature(function).parameters
        others = {name: answer for name, answer in answers.items() if name not in known}

        @functools.wraps(function)
        def suggesting(*args: _P.args, **kwargs: _P.kwargs) -> _T:
            for name in kwargs:
                if name in others:
                    of = args[0] if isinstance(args[0], type) else type(args[0])
                    called = f"{of.__name__}.{function.__name__}"
                    called = called.removesuffix(".__init__")
                    raise TypeError(f"{called}() has no argument {name!r}; use {others[name]}")
            return function(*args, **kwargs)

        return suggesting

    return decorate
