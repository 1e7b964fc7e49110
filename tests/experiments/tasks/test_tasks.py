"""Losses and scores against float64 formulas and scikit-learn."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import accuracy_score, confusion_matrix, jaccard_score, roc_auc_score

from experiments import tasks
from experiments.tasks import Binary, Classification, Segmentation
from steinnorm.attacks import VOID

K = 4


def _losses(task, outputs, targets):
    """Losses, weights and share of the labels that are right."""

    def found(outputs, targets):
        return *task.losses(outputs, targets), task.share_right(outputs, targets)

    return tuple(map(np.asarray, jax.jit(found)(outputs, targets)))


def _mean_and_gradient(task, outputs, targets):
    def mean(outputs):
        return tasks.mean_loss(task, outputs, jnp.asarray(targets))

    return tuple(map(np.asarray, jax.jit(jax.value_and_grad(mean))(outputs)))


def _softmax_losses(logits, labels, smoothing):
    """-sum_k q_k log p_k with q = (1 - s) one-hot + s / K, in float64."""
    logits = np.asarray(logits, np.float64)
    log_p = logits - np.log(np.exp(logits).sum(axis=-1, keepdims=True))
    count = logits.shape[-1]
    q = (1 - smoothing) * np.eye(count)[labels] + smoothing / count
    return -(q * log_p).sum(axis=-1)


def _sigmoid_losses(logits, labels, smoothing):
    p = 1 / (1 + np.exp(-np.asarray(logits, np.float64)))
    q = (1 - smoothing) * labels + smoothing / 2
    return -q * np.log(p) - (1 - q) * np.log(1 - p)


def _pixels(seed=0, images=3, size=5, void=0.2):
    """Logits (B, H, W, K) and labels, some of them void."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(scale=2, size=(images, size, size, K)).astype(np.float32)
    labels = generator.integers(0, K, (images, size, size)).astype(np.uint8)
    labels[generator.random(labels.shape) < void] = VOID
    return logits, labels


def _summary(task, outputs, targets):
    found = jax.jit(task.summary)(outputs, targets)  # one compilation, not one an operation
    assert {len(value) for value in found.values()} == {len(targets)}
    return {name: np.asarray(value) for name, value in found.items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_classification_loss_is_the_formula(smoothing):
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3, size=(7, K)).astype(np.float32)
    labels = generator.integers(0, K, 7).astype(np.int32)
    task = Classification(K, smoothing)
    losses, weights, _ = _losses(task, logits, labels)
    expected = _softmax_losses(logits, labels, smoothing)
    np.testing.assert_allclose(losses, expected, rtol=1e-5)
    np.testing.assert_array_equal(weights, np.ones(7))
    mean, gradient = _mean_and_gradient(task, logits, labels)
    np.testing.assert_allclose(mean, expected.mean(), rtol=1e-5)
    shares = np.exp(logits.astype(np.float64))
    shares /= shares.sum(axis=-1, keepdims=True)
    q = (1 - smoothing) * np.eye(K)[labels] + smoothing / K
    np.testing.assert_allclose(gradient, (shares - q) / 7, atol=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_loss_is_the_formula(smoothing):
    generator = np.random.default_rng(0)
    logits = generator.normal(scale=3, size=(7, 1)).astype(np.float32)
    labels = np.array([0, 1, 1, 0, 1, 0, 1], np.int32)
    task = Binary(label_smoothing=smoothing)
    losses, weights, _ = _losses(task, logits, labels)
    np.testing.assert_allclose(losses, _sigmoid_losses(logits[:, 0], labels, smoothing), rtol=1e-5)
    np.testing.assert_array_equal(weights, np.ones(7))


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_segmentation_loss_is_the_formula_over_pixels_that_are_not_void(smoothing):
    logits, labels = _pixels()
    known = labels != VOID
    assert 0 < known.sum() < known.size
    expected = _softmax_losses(logits[known], labels[known], smoothing)
    task = Segmentation(K, smoothing)
    losses, weights, _ = _losses(task, logits, labels)
    np.testing.assert_array_equal(weights, known.astype(np.float32))
    np.testing.assert_allclose(losses[known], expected, rtol=1e-5)
    value, gradient = _mean_and_gradient(task, logits, labels)
    np.testing.assert_allclose(value, expected.mean(), rtol=1e-5)
    np.testing.assert_array_equal(gradient[~known], 0)
    assert (np.abs(gradient[known]).max(axis=-1) > 0).all()
    # (softmax - q) / number of known pixels
    shares = np.exp(logits[known].astype(np.float64))
    shares /= shares.sum(axis=-1, keepdims=True)
    q = (1 - smoothing) * np.eye(K)[labels[known]] + smoothing / K
    np.testing.assert_allclose(gradient[known], (shares - q) / known.sum(), atol=1e-7)


def test_a_batch_of_void_has_no_loss_and_no_gradient():
    logits, labels = _pixels()
    void = np.full_like(labels, VOID)
    task = Segmentation(K, 0.1)
    value, gradient = _mean_and_gradient(task, logits, void)
    assert value == 0
    np.testing.assert_array_equal(gradient, 0)
    assert _losses(task, logits, void)[2] == 0
    scores = task.scores(_summary(task, logits, void))
    assert np.isnan([scores["miou"], scores["pixel_accuracy"], scores["loss"]]).all()
    assert scores["micro_jaccard"] == 0  # void pixels are counted, and never right


@pytest.mark.parametrize("task", [Classification(2, 0.1), Binary(label_smoothing=0.1)])
def test_huge_logits_have_finite_losses_and_gradients(task):
    huge = np.array([[1e4, -1e4], [-1e4, 1e4]], np.float32)[:, : task.outputs]
    value, gradient = _mean_and_gradient(task, huge, np.array([1, 1], np.int32))
    assert np.isfinite(value)
    assert np.isfinite(gradient).all()


def test_classification_scores():
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(20, K)).astype(np.float32)
    labels = generator.integers(0, K, 20).astype(np.int32)
    task = Classification(K, label_smoothing=0.3)  # scores never have it
    summary = _summary(task, logits, labels)
    np.testing.assert_array_equal(summary["prediction"], logits.argmax(axis=1))
    scores = task.scores(summary)
    assert scores["accuracy"] == accuracy_score(labels, logits.argmax(axis=1))
    assert 0 < scores["accuracy"] < 1
    assert scores["loss"] == pytest.approx(_softmax_losses(logits, labels, 0).mean(), rel=1e-5)
    share = _losses(task, logits, labels)[2]
    assert float(share) == pytest.approx(scores["accuracy"])
    assert task.score in scores


def test_binary_scores():
    generator = np.random.default_rng(1)
    logits = generator.normal(size=(20, 1)).astype(np.float32).round(1)  # ties
    labels = generator.integers(0, 2, 20).astype(np.int32)
    task = Binary(label_smoothing=0.3)
    scores = task.scores(_summary(task, logits, labels))
    assert scores["auc"] == roc_auc_score(labels, logits[:, 0])
    assert scores["accuracy"] == accuracy_score(labels, logits[:, 0] > 0)
    assert 0 < scores["accuracy"] < 1
    assert scores["loss"] == pytest.approx(_sigmoid_losses(logits[:, 0], labels, 0).mean())
    share = _losses(task, logits, labels)[2]
    assert float(share) == pytest.approx(scores["accuracy"])
    assert task.score in scores
    one_class = task.scores(_summary(task, logits, np.ones_like(labels)))
    assert np.isnan(one_class["auc"])
    assert one_class["accuracy"] == np.mean(logits > 0)


def test_segmentation_summary_and_scores():
    logits, labels = _pixels(images=4)
    labels[2] = VOID  # an image without a label at all
    known, prediction = labels != VOID, logits.argmax(axis=-1)
    task = Segmentation(K, label_smoothing=0.3)
    summary = _summary(task, logits, labels)
    for index in range(4):
        expected = np.zeros((K, K))
        if known[index].any():
            expected = confusion_matrix(
                labels[index][known[index]], prediction[index][known[index]], labels=range(K)
            )
        np.testing.assert_array_equal(summary["confusion"][index], expected)
    np.testing.assert_array_equal(summary["pixels"], [25] * 4)
    scores = task.scores(summary)
    assert scores["pixel_accuracy"] == accuracy_score(labels[known], prediction[known])
    ious = [
        ((labels == k) & (prediction == k)).sum()
        / (((labels == k) | (prediction == k)) & known).sum()
        for k in range(K)
    ]
    assert scores["miou"] == pytest.approx(np.mean(ious), rel=1e-12)
    assert scores["miou"] == pytest.approx(
        jaccard_score(labels[known], prediction[known], average="macro"), rel=1e-12
    )
    expected = _softmax_losses(logits[known], labels[known], 0).mean()
    assert scores["loss"] == pytest.approx(expected, rel=1e-5)
    share = _losses(task, logits, labels)[2]
    assert float(share) == pytest.approx(scores["pixel_accuracy"])
    assert task.score in scores


def test_classes_that_are_absent_have_no_term_in_the_mean_of_ious():
    labels = np.array([[[0, 0, 1, VOID]]], np.uint8)
    prediction = np.array([[[0, 2, 1, 3]]])  # 2 is predicted and absent; 3 only where void
    scores = Segmentation(K).scores(
        _summary(Segmentation(K), np.eye(K, dtype=np.float32)[prediction], labels)
    )
    assert scores["miou"] == (1 / 2 + 1 / 1) / 2


@pytest.mark.parametrize("images", [16, 21])
def test_micro_jaccard_is_that_of_the_papers_code(images):
    logits, labels = _pixels(images=images, size=3)
    truth = np.where(labels == VOID, 250, labels)  # void as the released code has it
    prediction = logits.argmax(axis=-1)
    expected = np.mean(
        [
            jaccard_score(
                truth[start : start + 16].ravel(),
                prediction[start : start + 16].ravel(),
                average="micro",
            )
            for start in range(0, images, 16)
        ]
    )
    scores = Segmentation(K).scores(_summary(Segmentation(K), logits, labels))
    assert scores["micro_jaccard"] == pytest.approx(expected, rel=1e-12)
    # A perfect network does not reach 1 where there is void.
    perfect = np.eye(K, dtype=np.float32)[np.where(labels == VOID, 0, labels)]
    best = Segmentation(K).scores(_summary(Segmentation(K), perfect, labels))
    assert best["miou"] == best["pixel_accuracy"] == 1
    assert best["micro_jaccard"] < 1


@pytest.mark.parametrize(
    ("task", "outputs", "targets"),
    [
        (Classification(K), np.zeros((1, K), np.float32), np.zeros(1, np.int32)),
        (Binary(), np.zeros((1, 1), np.float32), np.zeros(1, np.int32)),
        (Segmentation(K), np.zeros((1, 2, 2, K), np.float32), np.zeros((1, 2, 2), np.uint8)),
    ],
)
def test_no_examples_have_no_scores(task, outputs, targets):
    summary = _summary(task, outputs, targets)
    scores = task.scores({name: value[:0] for name, value in summary.items()})
    assert np.isnan(list(scores.values())).all()


def test_tasks_by_name():
    assert tasks.create("classification", K, 0.1) == Classification(K, 0.1)
    assert tasks.create("segmentation", K, 0.1) == Segmentation(K, 0.1)
    binary = tasks.create("binary", 2, 0.1)
    assert binary == Binary(label_smoothing=0.1)
    assert binary.outputs == 1
    with pytest.raises(
        ValueError, match="unknown task 'regression'; expected classification, binary or segment"
    ):
        tasks.create("regression", K)
