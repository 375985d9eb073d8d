"""PixelRNN: what each pixel sees, LSTMs against torch's and against a loop over pixels, probabilities that add up."""

import itertools
import json
import math
from typing import Any

import pytest
import torch
from drawing import draws
from naive_sampling import sample
from pydantic import ValidationError
from torch import nn

from genmodels.errors import SpecError
from genmodels.models import build
from genmodels.models.base import DataInfo, Samples, ScoresDensity, scaled
from genmodels.models.pixelrnn import Config, ConvLSTM, DiagonalBiLSTM, DiagonalLSTM, PixelRNN, skew, unskew

TINY: dict[str, Any] = {
    "resolution": 4,
    "levels": 4,
    "features": 24,
    "layers": 2,
    "first_kernel": 3,
    "head_features": 96,
    "mixture_components": 2,
}
recurrences = pytest.mark.parametrize("recurrence", ["row_lstm", "diagonal_bilstm"])


def tiny(*, channels: int = 3, **config: Any) -> PixelRNN:
    """A network whose every weight, masked ones too, has moved away from its start."""
    model = build("pixelrnn", TINY | config, DataInfo(channels), seed=0)
    assert isinstance(model, PixelRNN)
    generator = torch.Generator().manual_seed(1)
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return model.eval()


def reals(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(2))


def seen_by(model: PixelRNN, channels: int) -> torch.Tensor:
    """Which value, in rows, sees which, in columns, both in raster order with the channels innermost."""
    network = model.network.double()
    x = reals(1, channels, 4, 4)
    sums = lambda x: network(x).unflatten(1, (channels, 4)).sum(2)[0]  # noqa: E731
    jacobian = torch.autograd.functional.jacobian(sums, x)[:, :, :, 0]
    return (jacobian != 0).permute(1, 2, 0, 4, 5, 3).flatten(3).flatten(0, 2)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_diagonal_lstm_sees_all_that_comes_before_a_value_but_one(channels: int):
    """The Jacobian is strictly lower triangular and full, but for what the paper's network cannot see: no feature of a
    row holds the last value of that row, and the first convolution tells the next row of it in two columns only."""
    seen = seen_by(tiny(channels=channels), channels)
    expected = torch.ones(16 * channels, 16 * channels).tril(-1).bool()
    for row in range(1, 4):
        expected[4 * row * channels : (4 * row + 2) * channels, 4 * row * channels - 1] = False
    assert torch.equal(seen, expected)


@pytest.mark.parametrize("channels", [1, 2, 3])
def test_the_row_lstm_sees_nothing_that_follows_and_a_triangle_above(channels: int):
    seen = seen_by(tiny(channels=channels, recurrence="row_lstm"), channels)
    assert not seen.triu().any()
    for (row, column), (above, beside) in itertools.product(itertools.product(range(4), repeat=2), repeat=2):
        if above < row and abs(beside - column) <= row - above:
            first, second = ((4 * r + c) * channels for r, c in ((row, column), (above, beside)))
            assert seen[first : first + channels, second : second + channels].all()


def test_skewing_moves_each_row_one_further():
    x = torch.arange(1.0, 7).view(1, 1, 2, 3)
    assert skew(x)[0, 0].tolist() == [[1, 2, 3, 0], [0, 4, 5, 6]]
    for height, width in ((1, 4), (4, 1), (3, 3), (5, 2)):
        x = reals(2, 3, height, width)
        assert skew(x).shape == (2, 3, height, height + width - 1)
        assert torch.equal(unskew(skew(x)), x)


def test_a_line_of_one_state_is_torchs_lstm():
    ours, torchs = ConvLSTM(3, padding=(0, 0)).double(), nn.LSTM(4, 3, bias=False).double()
    i, f, g, o = torchs.weight_hh_l0.detach().chunk(4)  # torch's order of the gates
    ours.state_to_state.weight.data = torch.cat((o, f, i, g))[..., None]
    x = reals(7, 2, 4)
    i, f, g, o = (x @ torchs.weight_ih_l0.T).chunk(4, dim=2)
    inputs = torch.cat((o, f, i, g), dim=2).permute(1, 2, 0)[..., None]
    states = ours(inputs, torch.ones(7, 1))[..., 0].permute(2, 0, 1)
    torch.testing.assert_close(states, torchs(x)[0])


def test_the_diagonal_lstm_is_a_loop_over_the_pixels():
    """Each state of the left and of the upper neighbour, written out; states outside the image are 0."""
    layer = DiagonalLSTM(2, groups=1).double()
    x = reals(1, 4, 3, 4)
    inputs = layer.input_to_state(x)[0]
    from_above, from_left = layer.lstm.state_to_state.weight.unbind(2)
    hidden, cell = torch.zeros(4, 5, 2).double(), torch.zeros(4, 5, 2).double()  # with a margin above and to the left
    for row, column in itertools.product(range(3), range(4)):
        up, left = hidden[row, column + 1], hidden[row + 1, column]
        o, f, i, g = (inputs[:, row, column] + from_above @ up + from_left @ left).chunk(4)
        cell[row + 1, column + 1] = f.sigmoid() * cell[row + 1, column] + i.sigmoid() * g.tanh()
        hidden[row + 1, column + 1] = o.sigmoid() * cell[row + 1, column + 1].tanh()
    torch.testing.assert_close(layer(x)[0], hidden[1:, 1:].permute(2, 0, 1))


def test_what_the_right_corner_says_of_a_row_is_told_to_the_next():
    layer = DiagonalBiLSTM(2, groups=1).double()
    x = reals(1, 4, 3, 4)
    told = layer(x) - layer.from_left(x)
    assert not told[:, :, 0].any()
    torch.testing.assert_close(told[:, :, 1:], layer.from_right(x.flip(3)).flip(3)[:, :, :-1])


@recurrences
@pytest.mark.parametrize("likelihood", ["categorical", "logistic_mixture"])
def test_the_probabilities_of_all_binary_3x3_images_add_up_to_1(recurrence: str, likelihood: str):
    model = tiny(channels=1, resolution=3, levels=2, recurrence=recurrence, likelihood=likelihood)
    every = torch.tensor([*itertools.product((-1.0, 1.0), repeat=9)]).view(512, 1, 3, 3)
    probabilities = model.log_likelihood(every, generator=torch.Generator()).double().exp()
    assert probabilities.sum().item() == pytest.approx(1, abs=1e-5)
    assert model.likelihood == "exact"
    assert probabilities.std() > 1e-4


@recurrences
def test_a_last_layer_of_zeros_is_8_bits_per_dimension(recurrence: str):
    model = tiny(levels=256, recurrence=recurrence)
    last = model.network.head[-1]
    last.weight.data.zero_()
    last.bias.data.zero_()
    pixels = torch.randint(0, 256, (4, 3, 4, 4), dtype=torch.uint8, generator=torch.Generator().manual_seed(3))
    assert model.loss({"image": scaled(pixels)}, draws()).total.item() == pytest.approx(8.0)
    assert isinstance(model, ScoresDensity)
    nats = model.log_likelihood(scaled(pixels), generator=torch.Generator())
    torch.testing.assert_close(nats, torch.full((4,), -48 * 8 * math.log(2)))


@recurrences
@pytest.mark.parametrize("likelihood", ["categorical", "logistic_mixture"])
def test_samples_are_drawn_value_by_value(recurrence: str, likelihood: str):
    small = {"resolution": 3, "features": 6, "head_features": 12, "levels": 16}
    model = tiny(recurrence=recurrence, likelihood=likelihood, **small)
    assert isinstance(model, Samples)
    images = model.sample(20, generator=torch.Generator().manual_seed(4))
    uniform = torch.rand(20, model.distribution.draws, 3, 3, generator=torch.Generator().manual_seed(4))
    assert torch.equal(images, sample(model.network, model.distribution, images, uniform))
    assert len(images.unique()) == 16


def test_every_channel_needs_a_feature():
    with pytest.raises(SpecError, match="at least 3"):
        build("pixelrnn", TINY | {"features": 2}, DataInfo(channels=3), seed=0)


@pytest.mark.parametrize("wrong", [{"first_kernel": 4}, {"levels": 1}, {"recurrence": "zigzag"}])
def test_bad_values_are_refused(wrong: dict[str, Any]):
    with pytest.raises(ValidationError):
        Config.model_validate(TINY | wrong)


@pytest.mark.parametrize("preset", Config.presets)
def test_presets_survive_json(preset: str):
    config = Config.preset(preset)
    assert Config.model_validate(json.loads(json.dumps(config.model_dump(mode="json")))) == config
