"""Models without a gradient, such as callbacks, on which only attacks without one can be made."""

import jax
import jax.numpy as jnp

from steinnorm.attacks._model import LogitsFn, as_partial, traced_logits


def why_no_gradient(logits_fn: LogitsFn, x: jax.Array) -> str:
    """Returns why a model has no gradient with respect to its inputs, in JAX's words; "" if it has.

    Nothing is computed: the gradient is traced only.

    Args:
      logits_fn: a model that maps ``x`` to logits without an error.
      x: inputs (B, ...).
    """
    model = as_partial(logits_fn)
    try:
        jax.eval_shape(jax.grad(lambda inputs: jnp.sum(traced_logits(model, inputs))), x)
    except (ValueError, NotImplementedError) as error:
        return " ".join(str(error).split()) or type(error).__name__
    return ""
