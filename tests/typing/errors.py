"""What is raised, and caught under the names that Python has for it."""

from typing_extensions import assert_type

from pyllama2c import (
    CheckpointError,
    ContextLengthError,
    Llama,
    Llama2cError,
    OutOfMemoryError,
    UnknownModelError,
)

try:
    Llama("stories15M").generate("Once").read()
except OutOfMemoryError as error:
    assert_type(str(error), str)
except (CheckpointError, UnknownModelError) as error:
    caught: Llama2cError = error
except ContextLengthError as error:
    value: ValueError = error
except Llama2cError:
    pass
