"""The empirical NTK equals J J^T with the explicit Jacobian, for networks of every kind."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

from ridgescope.models import CNN, MLP, NTKProducts, empirical_ntk, ntk_diagonal
from ridgescope.models.kernels.checks import checked_parameters
from ridgescope.models.kernels.structured import contract, forms, plan
from ridgescope.models.kernels.structured.factors import layer_factors, settle
from ridgescope.models.kernels.structured.plan import make_plan

# float64: sums of up to 1e5 products lose a few hundred ulps at most; float32 likewise, from 6e-8
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-4}


def relative_error(kernel, oracle):
    return float((kernel - oracle).norm() / oracle.norm())


def trace_of(full, n, m, outputs):
    return torch.einsum("cpcq->pq", full.view(outputs, n, outputs, m)) / outputs


def assert_equals_oracle(model, x, y, oracle, outputs):
    assert_equals_oracle_at(model, x, y, oracle, outputs, x.dtype)


def assert_equals_oracle_at(model, x, y, oracle, outputs, dtype):
    tolerance = TOLERANCE[dtype]
    square, cross = oracle(model, x), oracle(model, x, y)
    kernel = empirical_ntk(model, None, x)
    assert kernel.dtype == dtype
    assert relative_error(kernel, square) < tolerance
    assert relative_error(empirical_ntk(model, None, x, y), cross) < tolerance
    trace = empirical_ntk(model, None, x, form="trace")
    assert relative_error(trace, trace_of(square, len(x), len(x), outputs)) < tolerance
    crossed_trace = empirical_ntk(model, None, x, y, form="trace")
    assert relative_error(crossed_trace, trace_of(cross, len(x), len(y), outputs)) < tolerance
    assert torch.equal(kernel, kernel.T)
    assert torch.equal(trace, trace.T)
    # J J^T has no negative eigenvalues; rounding perturbs them by eps times the largest, times the size
    eigenvalues = torch.linalg.eigvalsh(kernel.double())
    assert eigenvalues[0] > -len(kernel) * torch.finfo(dtype).eps * eigenvalues[-1]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("bias_std", [0.0, 0.3])
@pytest.mark.parametrize("parameterisation", ["ntk", "mup", "standard"])
def test_mlp(generator, inputs, ntk_oracle, parameterisation, bias_std, dtype):
    model = MLP(
        (8, 8), 3, width=17, depth=3, activation="gelu", parameterisation=parameterisation,
        bias_std=bias_std, generator=generator, dtype=dtype,
    )  # fmt: skip
    assert_equals_oracle(model, inputs(7, 8, 8, dtype=dtype), inputs(5, 8, 8, dtype=dtype), ntk_oracle, 3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("strides", [1, (1, 2), (2, 3)])
@pytest.mark.parametrize("readout", ["flatten", "pool"])
@pytest.mark.parametrize("parameterisation", ["ntk", "mup", "standard"])
def test_cnn(generator, inputs, ntk_oracle, parameterisation, readout, strides, dtype):
    # a smooth activation: in float32 a ReLU within rounding of 0 may take either slope
    model = CNN(
        (2, 7, 8), 3, width=5, depth=2, readout=readout, strides=strides, activation="erf", bias_std=0.3,
        parameterisation=parameterisation, generator=generator, dtype=dtype,
    )  # fmt: skip
    x, y = inputs(6, 2, 7, 8, dtype=dtype), inputs(4, 2, 7, 8, dtype=dtype)
    assert_equals_oracle(model, x, y, ntk_oracle, 3)


class Shared(nn.Module):
    """One layer three times, on a residual path."""

    def __init__(self):
        super().__init__()
        self.first, self.shared, self.last = nn.Linear(64, 9), nn.Linear(9, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = self.first(x)
        for _ in range(3):
            x = x + torch.tanh(self.shared(x))
        return self.last(x)


class SharedConvolution(nn.Module):
    """One convolution at two image sizes."""

    def __init__(self):
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 1, 3, padding=1), nn.Linear(16, 3)

    def forward(self, x):
        x = F.avg_pool2d(torch.tanh(self.conv(x.view(-1, 1, 8, 8))), 2)
        return self.last(self.conv(x).flatten(1))


class Tied(nn.Module):
    """The decoder reads the encoder's weight, transposed, behind the layer's back."""

    def __init__(self):
        super().__init__()
        self.encoder = nn.Linear(64, 9)

    def forward(self, x):
        return F.linear(torch.tanh(self.encoder(x)), self.encoder.weight.T)[:, :3]


class TwoNames(nn.Module):
    """One parameter owned by two layers."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3)
        self.second.weight = self.first.weight

    def forward(self, x):
        return self.last(torch.tanh(self.second(torch.tanh(self.first(x)))))


class Doubled(nn.Linear):
    """A subclass that is not the layer it derives from."""

    def forward(self, x):
        return super().forward(x) ** 2


class InPlace(nn.Module):
    """Writes into what its layers return, the readout included."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 9), nn.Linear(9, 3)

    def forward(self, x):
        x = self.first(x)
        x.relu_()
        x = self.last(x)
        x *= 2
        return x


class Tokens(nn.Module):
    """A transformer block over eight tokens, pooled."""

    def __init__(self):
        super().__init__()
        self.block = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.last = nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.block(x.view(-1, 8, 8)).mean(1))


class Folded(nn.Module):
    """Folds tokens into the batch axis, token-major, so that a layer's rows are not samples."""

    def __init__(self):
        super().__init__()
        self.each, self.last = nn.Linear(8, 5), nn.Linear(40, 3)

    def forward(self, x):
        tokens = x.view(-1, 8, 8).transpose(0, 1).reshape(-1, 8)
        return self.last(torch.tanh(self.each(tokens)).view(8, -1, 5).transpose(0, 1).flatten(1))


class Residual(nn.Module):
    """Two convolutions with BatchNorm around a skip, as in a ResNet."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 4, 3, padding=1)
        self.conv1, self.norm1 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.conv2, self.norm2 = nn.Conv2d(4, 4, 3, padding=1, bias=False), nn.BatchNorm2d(4)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = self.stem(x.view(-1, 1, 8, 8))
        out = self.norm2(self.conv2(F.gelu(self.norm1(self.conv1(x)))))
        out += x
        return self.last(F.gelu(out).mean((2, 3)))


class SmallTransformer(nn.Module):
    """Embedded tokens through self-attention with a causal mask, as nn.MultiheadAttention computes it."""

    def __init__(self):
        super().__init__()
        self.embedding, self.position = nn.Embedding(7, 8), nn.Parameter(torch.randn(5, 8))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(8), nn.LayerNorm(8), nn.LayerNorm(8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.feed = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))
        self.last = nn.Linear(8, 3)

    def forward(self, tokens):
        x = self.embedding(tokens) + self.position
        seen = self.norm1(x)
        mask = torch.full((5, 5), float("-inf"), dtype=x.dtype).triu(1)
        x = x + self.attention(seen, seen, seen, attn_mask=mask, need_weights=False)[0]
        x = x + self.feed(self.norm2(x))
        return self.last(self.norm3(x)[:, -1])


def drawn(make, dtype):
    """Plain torch layers draw from the global generator, which is left as it was."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().to(dtype).eval()


def smooth_resnet18():
    """ResNet-18 as torchvision builds it, with statistics and scales that are not the identity.

    GELU for ReLU: in single precision a ReLU within rounding of 0 may take either slope.
    """
    model = torchvision.models.resnet18(num_classes=2)
    for module in list(model.modules()):
        for child, layer in list(module.named_children()):
            if isinstance(layer, nn.ReLU):
                setattr(module, child, nn.GELU())
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight, 1, 0.2)
            nn.init.normal_(module.running_mean, 0, 0.1)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model


def plain(*layers):
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *layers)


def batch_normalised():
    model = Residual()
    generator = torch.Generator().manual_seed(1)
    for norm in (model.norm1, model.norm2):  # statistics and scales that are not the identity
        norm.running_mean.normal_(generator=generator)
        norm.running_var.uniform_(0.5, 2, generator=generator)
        nn.init.normal_(norm.weight, generator=generator)
    return model


class Reordered(nn.Module):
    """Passes the samples through a layer in another order: sums over samples would look right."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(64, 9), nn.Linear(9, 3)

    def forward(self, x):
        return self.last(torch.tanh(self.first(x.flip(0))).flip(0))


class TwoHeads(nn.Module):
    """The first output does not depend on the second head's layer."""

    def __init__(self):
        super().__init__()
        self.one, self.two = nn.Linear(64, 1), nn.Linear(64, 2)

    def forward(self, x):
        return torch.tanh(torch.cat([self.one(x), self.two(x)], dim=1))


NETWORKS = {
    "sequential": lambda: nn.Sequential(nn.Linear(64, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)),
    "one layer": lambda: nn.Linear(64, 3),
    "layers without biases": lambda: nn.Sequential(nn.Linear(64, 9, bias=False), nn.Tanh(), nn.Linear(9, 3, False)),
    "activation after the readout": lambda: nn.Sequential(nn.Linear(64, 9), nn.Tanh(), nn.Linear(9, 3), nn.ReLU()),
    "plain convolutions": lambda: plain(
        nn.Conv2d(1, 4, (5, 3), stride=(2, 1), padding=(2, 0)), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Tanh(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(30, 3),
    ),
    "dilated and grouped convolutions": lambda: plain(
        nn.Conv2d(1, 4, 3, dilation=2), nn.Tanh(), nn.Conv2d(4, 4, 3, groups=2), nn.Flatten(), nn.Linear(16, 3)
    ),
    "circular and same padding": lambda: plain(
        nn.Conv2d(1, 3, 3, padding=1, padding_mode="circular"), nn.Tanh(), nn.Conv2d(3, 2, 3, padding="same"),
        nn.Flatten(), nn.Linear(128, 3),
    ),
    "layer norm": lambda: nn.Sequential(nn.Linear(64, 9), nn.LayerNorm(9), nn.GELU(), nn.Linear(9, 3)),
    "residual with BatchNorm": batch_normalised,
    "dropout in eval mode": lambda: nn.Sequential(nn.Linear(64, 9), nn.Dropout(0.5), nn.Linear(9, 3)),
    "shared layer": Shared,
    "shared convolution": SharedConvolution,
    "weight read twice": Tied,
    "weight of two layers": TwoNames,
    "subclass": lambda: nn.Sequential(Doubled(64, 9), nn.Linear(9, 3)),
    "in place": InPlace,
    "transformer block": Tokens,
    "folded batch": Folded,
    "two heads": TwoHeads,
    "reordered batch": Reordered,
    "weight norm": lambda: nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(64, 9)), nn.Linear(9, 3)),
}  # fmt: skip


@pytest.mark.filterwarnings("ignore:There is a performance drop")  # the oracle's own vmap
@pytest.mark.parametrize("name", NETWORKS)
def test_any_network(inputs, ntk_oracle, name):
    model = drawn(NETWORKS[name], torch.float64)
    assert_equals_oracle(model, inputs(6, 64), inputs(4, 64), ntk_oracle, 3)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("name", ["shared layer", "shared convolution", "residual with BatchNorm", "transformer block"])
def test_single_precision(inputs, ntk_oracle, name):
    model = drawn(NETWORKS[name], torch.float32)
    x, y = (inputs(n, 64, dtype=torch.float32) for n in (6, 4))
    assert_equals_oracle(model, x, y, ntk_oracle, 3)


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_a_small_transformer(ntk_oracle, dtype):
    model = drawn(SmallTransformer, dtype)
    tokens = torch.arange(45).view(9, 5) * 3 % 7
    assert_equals_oracle_at(model, tokens[:5], tokens[5:], ntk_oracle, 3, dtype)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:There is a performance drop")
def test_resnet18(inputs, ntk_oracle):
    model = drawn(smooth_resnet18, torch.float32)
    x = inputs(2, 3, 32, 32, dtype=torch.float32)
    single = empirical_ntk(model, None, x)
    # torch's own Jacobian in single precision is off by 1e-4 here, so both are held against double
    model, x = model.double(), x.double()
    oracle = ntk_oracle(model, x)
    assert relative_error(empirical_ntk(model, None, x), oracle) < TOLERANCE[torch.float64]
    assert relative_error(single.double(), oracle) < TOLERANCE[torch.float32] / 10
    # 20 convolutions and the readout are structured; 40 tensors of BatchNorm are left to their Jacobian
    made = make_plan(model, checked_parameters(model, None, x), x, None, trace=False)
    settled, _ = settle(made, x, lambda _: (0, 2))
    assert (len(settled.layers), sum(map(len, settled.rest.values()))) == (21, 40)


def test_integer_inputs(ntk_oracle):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Embedding(11, 4), nn.Flatten(), nn.Linear(20, 3)).double()
    tokens = torch.arange(30).view(6, 5) % 11
    assert relative_error(empirical_ntk(model, None, tokens), ntk_oracle(model, tokens)) < 1e-10


@pytest.mark.parametrize("penalty", [0.0, float("inf")])
@pytest.mark.parametrize("outputs", [1, 4])
def test_both_contractions_of_a_convolution_agree(monkeypatch, generator, inputs, ntk_oracle, outputs, penalty):
    # the penalty decides between products over pairs of pixels (0) and explicit gradients (infinity)
    monkeypatch.setattr(forms, "SPATIAL_PENALTY", penalty)
    model = CNN((1, 8, 8), outputs, width=6, depth=2, strides=(1, 2), bias_std=0.2, generator=generator)
    assert_equals_oracle(model, inputs(9, 64), inputs(5, 64), ntk_oracle, outputs)


@pytest.mark.parametrize("penalty", [0.0, float("inf")])
@pytest.mark.parametrize("tile", [4, 512])
def test_tiles_meet_without_gaps(monkeypatch, generator, inputs, ntk_oracle, tile, penalty):
    # tiles of 4 in tiles of 4, and several small ones within one large
    monkeypatch.setattr(contract, "TILE", tile)
    monkeypatch.setattr(contract, "COLUMNS", 1)
    monkeypatch.setattr(contract, "CHUNK", 1)
    monkeypatch.setattr(forms, "SPATIAL_PENALTY", penalty)
    for model in (
        CNN((1, 8, 8), 3, width=6, depth=2, strides=(1, 2), generator=generator),
        MLP((64,), 3, width=12, depth=2, generator=generator),
    ):
        assert_equals_oracle(model, inputs(11, 64), inputs(6, 64), ntk_oracle, 3)


@pytest.mark.parametrize("form", ["full", "trace"])
def test_blocks_of_inputs_give_the_same_kernel(generator, inputs, form):
    model = CNN((1, 8, 8), 3, width=6, depth=2, generator=generator)
    x, y = inputs(11, 64), inputs(5, 64)
    small = 6e5  # bytes: a few inputs at a time
    for other in (None, y):
        blocked = empirical_ntk(model, None, x, other, form=form, memory=small)
        torch.testing.assert_close(blocked, empirical_ntk(model, None, x, other, form=form))
    square = empirical_ntk(model, None, x, form=form, memory=small)
    assert torch.equal(square, square.T)


def test_structured_layers_are_not_left_to_the_fallback(generator, inputs):
    # equality alone would hold if everything went through the exact Jacobian
    in_place = nn.Sequential(nn.Linear(64, 9), nn.ReLU(inplace=True), nn.Linear(9, 3)).double()
    for model in (CNN((1, 8, 8), 3, width=6, depth=3, bias_std=0.1, generator=generator), in_place):
        x = inputs(5, 64)
        made = make_plan(model, checked_parameters(model, None, x), x, None, trace=False)
        settled, _ = settle(made, x, lambda _: (0, 5))
        assert settled.rest == {}
        assert [layer.form.__name__ for layer in settled.layers.values()][-1] == "Diagonal"


def test_one_skeleton_serves_many_parameter_sets(generator, inputs):
    nets = [MLP((64,), 3, width=8, depth=2, generator=generator) for _ in range(3)]
    stacked = {name: torch.stack([dict(net.named_parameters())[name] for net in nets]) for name in nets[0].state_dict()}
    x = inputs(4, 64)
    for i, net in enumerate(nets):
        one = {name: values[i] for name, values in stacked.items()}
        assert torch.equal(empirical_ntk(nets[0], one, x), empirical_ntk(net, None, x))


def test_the_model_is_left_as_it_was(generator, inputs):
    model = MLP((64,), 3, width=8, depth=2, generator=generator)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    empirical_ntk(model, None, inputs(4, 64))
    assert all(not module._forward_hooks for module in model.modules())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())


def test_parameters_of_another_precision_than_the_model(generator, inputs, ntk_oracle):
    model = CNN((1, 8, 8), 3, width=6, depth=2, activation="erf", generator=generator)
    single = {name: value.float() for name, value in model.named_parameters()}
    kernel = empirical_ntk(model, single, inputs(5, 64).float())
    assert kernel.dtype == torch.float32


class Centred(nn.Linear):
    def forward(self, x):
        y = super().forward(x)
        return y - y.mean(0)


@pytest.mark.parametrize(
    ("layers", "message"),
    [
        ([nn.Linear(64, 9), nn.Dropout(0.5), nn.Linear(9, 3)], r"1 \(Dropout\) drops units.*model.eval\(\)"),
        ([nn.Linear(64, 9), nn.BatchNorm1d(9), nn.Linear(9, 3)], r"1 \(BatchNorm1d\) couples.*model.eval\(\)"),
        ([Centred(64, 3)], "changes with the rest of its batch"),
        ([nn.Linear(64, 6), nn.Unflatten(1, (2, 3))], r"a batch of 1 to shape \(1, 2, 3\).*flatten or reduce"),
        ([nn.ReLU()], "no parameters"),
    ],
)
def test_models_without_a_kernel_are_refused(inputs, layers, message):
    with pytest.raises(ValueError, match=message):
        empirical_ntk(nn.Sequential(*layers).double(), None, inputs(4, 64))


def test_bad_input_is_named(generator, inputs):
    model = MLP((64,), 3, width=8, depth=2, generator=generator)
    x, params = inputs(4, 64), {name: value.detach() for name, value in model.named_parameters()}
    with pytest.raises(ValueError, match=r"form='block'.*full, trace"):
        empirical_ntk(model, None, x, form="block")
    with pytest.raises(ValueError, match=r"hidden.1.weight holds NaN"):
        empirical_ntk(model, {**params, "hidden.1.weight": params["hidden.1.weight"] * float("nan")}, x)
    with pytest.raises(ValueError, match=r"missing \['readout.weight'\], unknown \['out'\]"):
        empirical_ntk(model, {**{k: v for k, v in params.items() if "readout" not in k}, "out": x}, x)
    with pytest.raises(ValueError, match=r"hidden.0.weight has shape \(2, 8, 64\).*one network's slice"):
        empirical_ntk(model, {name: torch.stack([value, value]) for name, value in params.items()}, x)
    with pytest.raises(ValueError, match=r"inputs are torch.float32 on cpu but parameter.*torch.float64"):
        empirical_ntk(model, None, x.float())
    with pytest.raises(ValueError, match="inputs hold NaN"):
        empirical_ntk(model, None, x / 0)
    with pytest.raises(ValueError, match=r"a batch \(n, ...\) with n >= 1, got shape \(64,\)"):
        empirical_ntk(model, None, x[0])
    with pytest.raises(ValueError, match=r"memory=1KB cannot hold one input.*pass memory=.* or more"):
        empirical_ntk(model, None, x, memory=1000)


class Gate(nn.Module):
    """Pools each channel for itself, but of images whose first pixel is positive adds another channel."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(1, 5, 3, padding=1), nn.Conv2d(5, 4, 3, padding=1)
        self.last = nn.Linear(4, 3)

    def forward(self, x):
        x = x.view(-1, 1, 8, 8)
        h = torch.tanh(self.second(torch.tanh(self.first(x)))).mean((2, 3))
        return self.last(h + (x[:, :, 0, 0] > 0) * h.roll(1, 1))


def forms_where_mixed(monkeypatch, inputs, ntk_oracle, gate, mixing, *, trace):
    """The kinds of factors of nine inputs, of which those in ``mixing`` mix; the kernels equal the oracle's."""
    model, x, y = drawn(gate, torch.float64), inputs(9, 64), inputs(5, 64)
    x[:, 0], y[:, 0] = -1, -1
    x[list(mixing), 0] = 1
    monkeypatch.setattr(plan, "PASS_BYTES", 1)  # batches of five and four
    assert_equals_oracle(model, x, y, ntk_oracle, 3)
    made = make_plan(model, checked_parameters(model, None, x), x, None, trace=trace)
    settled, factors = settle(made, x, lambda _: (9, 5))
    assert settled.rest == {}
    return model, x, [type(factor).__name__ for factor in factors]


@pytest.mark.parametrize("mixing", [[], [8], [0], range(9)])
def test_channels_that_mix_in_some_batches_only(monkeypatch, inputs, ntk_oracle, mixing):
    model, x, forms = forms_where_mixed(monkeypatch, inputs, ntk_oracle, Gate, mixing, trace=False)
    assert forms == ["Explicit", "Explicit" if mixing else "Common", "Diagonal"]
    oracle = ntk_oracle(model, x)
    v = inputs(27, 2)
    torch.testing.assert_close(NTKProducts(model, None, x)(v), oracle @ v)
    torch.testing.assert_close(ntk_diagonal(model, None, x), oracle.diagonal())


class DenseGate(nn.Module):
    """Each feature is a function of one neuron, but of inputs whose first number is positive of another neuron too."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.last = nn.Linear(64, 5), nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        h = torch.tanh(self.second(torch.tanh(self.first(x))))
        return self.last(h + (x[:, :1] > 0) * h.roll(1, 1))


@pytest.mark.parametrize("mixing", [[], [8], [0], range(9)])
def test_neurons_that_mix_in_some_batches_only(monkeypatch, inputs, ntk_oracle, mixing):
    _, _, forms = forms_where_mixed(monkeypatch, inputs, ntk_oracle, DenseGate, mixing, trace=True)
    assert forms == ["Gated", "Gated" if mixing else "Scaled", "Diagonal"]


class Opaque(torch.autograd.Function):
    """A backward pass through NumPy, which cannot take several outputs at once."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return torch.tanh(x)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        return torch.from_numpy(gradient.numpy() / np.cosh(x.numpy()) ** 2)


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.function, self.first, self.last = function, nn.Linear(64, 9), nn.Linear(9, 3)

    def forward(self, x):
        return self.last(self.function(self.first(x)))


def test_a_backward_pass_that_takes_one_output_at_a_time(inputs):
    x = inputs(6, 64)
    opaque, plain = (drawn(lambda f=f: Custom(f), torch.float64) for f in (Opaque.apply, torch.tanh))
    torch.testing.assert_close(empirical_ntk(opaque, None, x), empirical_ntk(plain, None, x))


def test_factors_have_the_same_bits_with_and_without_the_check(generator, inputs):
    pooled = CNN((1, 8, 8), 3, width=6, depth=3, readout="pool", generator=generator)
    dense = MLP((64,), 3, width=6, depth=2, generator=generator)
    x = inputs(7, 64)
    for model, trace in ((pooled, False), (dense, True), (drawn(Residual, torch.float64), False)):
        made = make_plan(model, checked_parameters(model, None, x), x, None, trace=trace)
        settled, checked = settle(made, x, lambda _: (7, 3))
        for one, other in zip(checked, layer_factors(settled, x, 3), strict=True):
            for name in {"inputs", "cotangents", "gradients"} & set(vars(one)):
                assert torch.equal(getattr(one, name), getattr(other, name))
