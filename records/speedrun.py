"""See token-wise learning happen: a model learns, on two cores, to find scenes and to tell whose colour is whose.

    pip install torch numpy && python records/speedrun.py     # and speedrun.npz beside it; torch 2.9 or newer
    python records/speedrun.py model=clip,relu,heads,filip,smooth       # writes learning.svg and log.json

A scene shows nine tinted things in a grid of 3 x 3, and its caption names three of them ("a red cat, a blue crab and a
pink kiwi"), as real captions do. A patch shows one thing, and patches do not mix; a word knows the word before it.
Every third thing is reserved: in training none of them is ever red, green or blue. The captions of the 1,000 test
scenes name three reserved things in these colours, so a caption with two colours exchanged is as new as the true one.
The target: nine in ten scenes are found in both directions (chance: 0.1 %), and 95 % of the exchanged captions are
rejected (chance: 50), each with p < 0.01 over the seeds.

``filip`` averages each patch's best word (s^I) and each word's best patch (s^T) (Yao et al., ICLR 2022); ``smooth``
trains with t log mean exp(s / t) for the maximum, and is tested with the maximum. The others compare one vector a side:
``clip`` is the mean of the tokens, ``relu`` that of 2,304 ReLU features of each, ``heads`` has 36 attention poolings.
Five more, one of them without a gradient, are in the logs, with their source; verify.py runs a log again.
"""

import hashlib
import json
import math
import sys
import time
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

WIDTH, BATCH, STEPS = 64, 64, 150  # numbers of a token; scenes of a step
RATES = {  # of AdamW and Muon, of at least nine, in 300 steps on 200 other scenes: records/README.md
    "clip": (3e-3, 0.01), "relu": (0.024, 0.02), "heads": (3e-3, 0.04), "filip": (0.012, 0.04), "smooth": (0.012, 0.04)
}  # fmt: skip
SMOOTH = 0.1  # temperature of the smooth maximum
SCALE = 10.0  # of the similarities at first; then it is learned
WHITE = 128  # principal components kept of a patch's 3 * 12 * 12 numbers
INKS = {"clip": "#888", "relu": "#a3c", "heads": "#c70", "filip": "#06c", "smooth": "#083"}  # of the models' curves

# --- Data: 420 drawings of things in grey, and eight colours to tint them ---
SPRITES = Path(__file__).with_name("speedrun.npz")  # Noto Emoji, Google Inc., Apache-2.0: see speedrun.npz.license
SHA256 = "51dbe047edb7ca0a9dc6bb6d36746d3682152171808defa3ed7f6f255896f708"
COLOURS = {  # the first three are never a reserved thing's in training
    "red": (225, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 225), "yellow": (245, 215, 40),
    "purple": (145, 60, 185), "orange": (245, 140, 30), "pink": (245, 140, 190), "cyan": (60, 205, 220),
}  # fmt: skip
RESERVED, SIDE, GRID, PATCH = 3, 24, 3, 12  # every 3rd thing; its pixels; 3 x 3 things; 2 x 2 patches each
NAMED, TOKENS = 3, 36  # things in a caption (3 to 9, by named=); patches of a picture
NUMBERS = TOKENS * WIDTH  # of a vector of `relu`, `bilinear` and `heads`: as many as the tokens of a picture have


class Scenes(NamedTuple):
    """Scenes as arrays [n, 9]: numbers of things and colours, and their cells; a caption names the first three."""

    things: np.ndarray
    colours: np.ndarray
    cells: np.ndarray


class World:
    """The drawings and names, and what is made of them: scenes, pictures, captions."""

    def __init__(self):
        if hashlib.sha256(SPRITES.read_bytes()).hexdigest() != SHA256:
            sys.exit(f"error: the SHA-256 of {SPRITES} is not {SHA256}: fetch the file that belongs to this program")
        with np.load(SPRITES) as sprites:
            self.names = [str(name) for name in sprites["names"]]
            self.pixels = torch.from_numpy(sprites["pixels"]).float() / 255  # [things, 24, 24, grey and alpha]
        self.ids = {word: i for i, word in enumerate(["", "a", "and", *COLOURS, *self.names])}
        self.rgb = torch.tensor(list(COLOURS.values())) / 255

    def training_scenes(self, random, count):
        """Return scenes of nine different things, of which the reserved ones are never red, green or blue."""
        things, cells = (random.random((count, n)).argsort(1)[:, : GRID**2] for n in (len(self.names), GRID**2))
        any_colour, others = (random.integers(lowest, len(COLOURS), things.shape) for lowest in (0, 3))
        return Scenes(things, np.where(things % RESERVED == 0, others, any_colour), cells)

    def test_scenes(self, count=1000, seed=10**6):
        """Return scenes whose captions name reserved things alone, all red, green or blue, the first three one each."""
        random = np.random.default_rng(seed)
        scenes = self.training_scenes(random, count)
        for row in scenes.things:
            row[:NAMED] = random.choice(np.setdiff1d(np.arange(0, len(self.names), RESERVED), row), NAMED, False)
        scenes.colours[:, :3] = random.random((count, 3)).argsort(1)
        scenes.colours[:, 3:NAMED] = random.integers(0, 3, (count, NAMED - 3))
        return scenes

    def draw(self, scenes):
        """Return the pictures [n, 3, 72, 72] as ink, 2 * (1 - light): 0 is white paper, 2 is black."""
        count = len(scenes.things)
        grey, alpha = self.pixels[scenes.things].unbind(-1)  # [n, 9, 24, 24]
        tint = self.rgb[scenes.colours][..., None, None] * (0.35 + 0.65 * grey[:, :, None])
        page = torch.empty(count, GRID**2, 3, SIDE, SIDE)
        page[np.arange(count)[:, None], scenes.cells] = 2 * alpha[:, :, None] * (1 - tint)
        return page.view(count, GRID, GRID, 3, SIDE, SIDE).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def captions(self, scenes):
        """Return captions such as "a red cat, a blue crab and a pink kiwi"."""
        colours = list(COLOURS)
        for things, tints in zip(scenes.things[:, :NAMED], scenes.colours[:, :NAMED], strict=True):
            parts = [f"a {colours[c]} {self.names[t]}" for t, c in zip(things, tints, strict=True)]
            yield ", ".join(parts[:-1]) + " and " + parts[-1]

    def encode(self, scenes):
        """Return the numbers of the captions' words [n, 10] int64: 3 * NAMED + 1 of them."""
        return torch.tensor([[self.ids[word] for word in c.replace(",", "").split()] for c in self.captions(scenes)])


# --- Towers: patches stay local, a word knows the word before it; every token is projected ---
class ImageTower(nn.Module):
    """Pictures [n, 3, 72, 72] to a token for each of their patches [n, TOKENS, width]."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3 * PATCH**2))
        self.register_buffer("whitening", torch.zeros(3 * PATCH**2, WHITE))
        self.stem = nn.Sequential(nn.Linear(WHITE, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, width, bias=False)

    def whiten(self, pixels):
        """Set the first layer, which is not trained: PCA of patches, scaled to variances near 1."""
        patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        self.mean.copy_(patches.mean(0))
        self.whitening.copy_(vectors[:, -WHITE:] * (values[-WHITE:] + 0.01) ** -0.5)

    def white(self, pixels):
        """Return the whitened patches [n, TOKENS, WHITE]."""
        return (F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2) - self.mean) @ self.whitening

    def forward(self, pixels):
        return self.projection(self.norm(self.stem(self.white(pixels))))


class TextTower(nn.Module):
    """Numbers of words [n, 10] to a token for each word [n, 10, width]."""

    def __init__(self, width, words):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.02 * torch.randn(words, width), freeze=False)
        self.positions = nn.Parameter(0.01 * torch.randn(3 * NAMED + 1, width))
        self.before = nn.Linear(width, width, bias=False)  # each word gets a map of the word before it
        self.norm, self.projection = nn.LayerNorm(width), nn.Linear(width, width, bias=False)

    def forward(self, ids):
        x = self.embedding(ids) + self.positions
        return self.projection(self.norm(x + F.pad(self.before(x[:, :-1]), (0, 0, 1, 0))))


class Pool(nn.Module):
    """Tokens [n, tokens, width] to unit vectors: one a side [n, 1, numbers], or each of them for filip and smooth."""

    def __init__(self, kind, width):
        super().__init__()
        self.kind = kind
        if kind == "relu":
            self.features = nn.Linear(width, NUMBERS, bias=False)
        if kind == "heads":
            self.queries = nn.Parameter(0.02 * torch.randn(TOKENS, width))
            self.values = nn.Parameter(width**-0.5 * torch.randn(TOKENS, width, width))

    def forward(self, tokens):
        if self.kind == "clip":
            tokens = tokens.mean(1, keepdim=True)
        if self.kind == "relu":
            tokens = self.features(tokens).relu().mean(1, keepdim=True)
        if self.kind == "heads":
            weights = (tokens @ self.queries.T).softmax(1)
            tokens = torch.einsum("nth,ntw,hwd->nhd", weights, tokens, self.values).flatten(1)[:, None]
        return F.normalize(tokens, dim=2)


class Model(nn.Module):
    """Both towers, and what makes their tokens unit vectors [n, tokens, d]."""

    def __init__(self, kind, words, pool=Pool):
        super().__init__()
        self.kind, self.image, self.text = kind, ImageTower(WIDTH), TextTower(WIDTH, words)
        self.pools = nn.ModuleList(pool(kind, WIDTH) for _ in range(2))
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def images(self, pixels):
        return self.pools[0](self.image(pixels))

    def texts(self, ids):
        return self.pools[1](self.text(ids))


def similarity(images, texts, smooth=0.0):
    """Return s^I and s^T [n, m] of images [n, p, d] and texts [m, l, d], unit vectors.

    ``smooth`` is the temperature of the smooth maximum; 0 is the maximum.
    """
    pairs = (images.flatten(0, 1) @ texts.flatten(0, 1).T).view(*images.shape[:2], *texts.shape[:2])  # [n, p, m, l]
    if smooth:  # one exponential serves both directions; a cosine is at most 1, so it cannot overflow
        e = ((pairs - 1) / smooth).exp()
        best_word, best_patch = (1 + smooth * (e.mean(axis) + 1e-30).log() for axis in (3, 1))
    else:
        best_word, best_patch = pairs.amax(3), pairs.amax(1)
    return best_word.mean(1), best_patch.mean(2)


def contrastive_loss(i2t, t2i, scale):
    """Return the mean cross-entropy of finding each image's text by s^I and each text's image by s^T."""
    diagonal = torch.arange(len(i2t))
    return (F.cross_entropy(scale * i2t, diagonal) + F.cross_entropy(scale * t2i.T, diagonal)) / 2


def recall(scores):
    """Return the share of rows with their highest score on the diagonal; equal scores share the hit."""
    true = scores.diagonal()[:, None]
    return (((scores > true).sum(1) == 0) / (scores == true).sum(1)).mean().item()


@torch.no_grad()
def evaluate(world, model, scenes):
    """Return percent: R@1 image to text, text to image, exchanges rejected, things whose best patch is in their cell.

    Always by maxima; a rejection is the mean of s^I's and s^T's. The last is nan for one vector a side.
    """
    images = torch.cat([model.images(pixels) for pixels in world.draw(scenes).split(200)])
    texts, rejected = model.texts(world.encode(scenes)), []
    i2t, t2i = map(torch.cat, zip(*(similarity(part, texts) for part in images.split(20)), strict=True))
    for order in ([1, 0, 2], [2, 1, 0], [0, 2, 1]):  # two of the three colours exchanged
        colours = np.concatenate([scenes.colours[:, order], scenes.colours[:, 3:]], 1)
        others = model.texts(world.encode(scenes._replace(colours=colours)))
        pairs = images @ others.transpose(1, 2)  # [n, patches, words]
        for true, other in ((i2t, pairs.amax(2).mean(1)), (t2i, pairs.amax(1).mean(1))):
            lead = true.diagonal() - other  # of the true caption; within rounding it counts half
            rejected.append(((lead > 1e-6).float() + (lead > -1e-6).float()).mean() / 2)
    places = math.nan
    if images.shape[1] == TOKENS:
        things = [*range(2, 3 * NAMED - 3, 3), 3 * NAMED]  # places of their words
        best = (images @ texts[:, things].transpose(1, 2)).argmax(1).numpy()  # [n, NAMED]
        places = np.mean(best // 12 * GRID + best % 6 // 2 == scenes.cells[:, :NAMED])  # 6 x 6 patches, 2 x 2 a cell
    return [100 * float(x) for x in (recall(i2t), recall(t2i.T), np.mean(rejected), places)]


# --- Training ---
def optimisers(model, steps):
    """Return Muon for the matrices of layers, AdamW for the rest (embeddings, biases, heads), and their schedules."""
    named = {name: p for name, p in model.named_parameters() if name != "log_scale"}
    layers = [n for n, p in named.items() if n.endswith("weight") and p.ndim == 2 and "embedding" not in n]
    rate, muon_rate = RATES[model.kind]
    rest = [p for name, p in named.items() if name not in layers]
    groups = [{"params": rest}, {"params": [model.log_scale], "lr": 3 * rate}]
    adamw = torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    muon = torch.optim.Muon([named[name] for name in layers], lr=muon_rate, weight_decay=0.0)
    shape = {"total_steps": max(steps, 20), "pct_start": 0.1, "anneal_strategy": "linear", "cycle_momentum": False}
    schedules = [OneCycleLR(o, [group["lr"] for group in o.param_groups], **shape) for o in (adamw, muon)]
    return [adamw, muon, *schedules]


def clock():  # the wall's seconds, and those of all threads
    return np.array([time.perf_counter(), time.process_time()])


def product():
    """Return the processor seconds of a product of two 1,024 x 1,024 matrices, by which machines are compared."""
    matrix, times = torch.randn(1024, 1024), [time.process_time()]
    for _ in range(20):
        matrix @ matrix
        times.append(time.process_time())
    return np.median(np.diff(times))


def train(world, kind, seed, steps, pool=Pool):
    """Return the model, its curve [(step, seconds, *evaluation)], and its seconds of wall and processor."""
    torch.manual_seed(seed)
    random, model, curve, seconds = np.random.default_rng(seed), Model(kind, len(world.ids), pool), [], 0
    watched, start = world.test_scenes(200, 10**6 + 1), clock()
    model.image.whiten(world.draw(world.training_scenes(random, 500)))
    updates = optimisers(model, steps)
    for step in range(1, steps + 1):
        scenes = world.training_scenes(random, BATCH)
        images, texts = model.images(world.draw(scenes)), model.texts(world.encode(scenes))
        scores = similarity(images, texts, SMOOTH if kind == "smooth" else 0)
        loss = contrastive_loss(*scores, model.log_scale.exp().clamp(max=100))
        model.zero_grad()
        loss.backward()
        for update in updates:
            update.step()
        if step % max(1, steps // 10) == 0 or step == steps:  # on 200 other scenes; not timed
            seconds = seconds + clock() - start
            curve.append((step, seconds[0], *evaluate(world, model, watched)))
            print("{:8} seed {}  step {:4} {:5.1f} s  of 200: {:4.1f} / {:4.1f} %  rejected {:4.1f}  places {:4.1f}"
                  .format(kind, seed, *curve[-1]), flush=True)  # fmt: skip
            start = clock()
    return model, curve, seconds


def p_above(values, target):
    """Return the one-sided p of Student's t test of a mean above the target; a million draws spare us SciPy."""
    if len(values) < 2:
        return math.nan
    t = (np.mean(values) - target) / max(np.std(values, ddof=1), 1e-9) * len(values) ** 0.5
    return (np.random.default_rng(0).standard_t(len(values) - 1, 10**6) >= t).mean()


def draw_curves(curves):
    """Return the learning curves as SVG: scenes found, and exchanges rejected, by step."""
    text, steps = "", max(curve[-1][0] for _, curve in curves)
    for left, name in ((50, "scenes found, R@1, mean of both directions (%)"), (400, "exchanges rejected (%)")):
        text += f'<text x="{left}" y="14">{name}</text><path d="M{left} 24v200h300" fill="none" stroke="black"/>'
        text += f'<text x="{left + 130}" y="244">step</text><text x="{left + 285}" y="238">{steps}</text>'
        text += "".join(f'<text x="{left - 28}" y="{228 - 2 * y}">{y}</text>' for y in (0, 50, 100))
        for kind, curve in curves:
            high = ((c[0], (c[2] + c[3]) / 2 if left == 50 else c[4]) for c in curve)
            points = " ".join(f"{left + 300 * step / steps:.1f},{224 - 2 * y:.1f}" for step, y in high)
            text += f'<polyline points="{points}" fill="none" stroke="{INKS[kind]}"/>'
    text += "".join(f'<text x="{50 + 85 * i}" y="266" fill="{INKS[k]}">{k}</text>' for i, k in enumerate(dict(curves)))
    return f'<svg xmlns="http://www.w3.org/2000/svg" width="720" height="275" font-size="12">{text}</svg>'


def main(model="smooth", seeds="0,1,2", steps=STEPS, rates="", named=3, kinds=INKS, teach=train, sources=(__file__,)):
    global NAMED
    NAMED = int(named)
    if unknown := set(model.split(",")) - set(kinds):
        sys.exit(f"error: model={unknown.pop()}: it is one of {', '.join(kinds)}, or several with commas")
    torch.set_num_threads(min(2, torch.get_num_threads()))  # the record is for two cores
    world, rows, curves = World(), [], []
    tests = world.test_scenes()
    for kind in model.split(","):
        trainings = []
        RATES[kind] = [float(rate) for rate in rates.split(",")] if rates else RATES.get(kind)
        for seed in map(int, seeds.split(",")):
            unit = product()
            learned, curve, (wall, cpu) = teach(world, kind, seed, int(steps))
            found = zip(("found_i2t", "found_t2i", "rejected", "places"), evaluate(world, learned, tests), strict=True)
            trainings.append({"seed": seed, **dict(found), "seconds": wall, "cpu_seconds": cpu, "products": cpu / unit})
            curves += [(kind, curve)] if curve else []
        mean = {name: np.mean([t[name] for t in trainings]) for name in trainings[0]}
        lowest = [min(t["found_i2t"], t["found_t2i"]) for t in trainings]
        p = max(p_above(lowest, 90), p_above([t["rejected"] for t in trainings], 95))
        rows.append({"model": kind, "steps": int(steps), "rates": RATES[kind], "p": p, "trainings": trainings})
        print("{:8} {} seeds, {} steps: found {found_i2t:.1f} / {found_t2i:.1f} %, exchange rejected {rejected:.1f} %, "
              "places {places:.1f} %, p {:.1g}, {cpu_seconds:.1f} CPU s a training, {products:.0f} matrix products"
              .format(kind, len(trainings), steps, p, **mean))  # fmt: skip
    if curves:
        Path("learning.svg").write_text(draw_curves(curves))
    log = {"command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]), "torch": torch.__version__, "rows": rows}
    log["sources"] = {Path(file).name: Path(file).read_text() for file in sources}
    Path("log.json").write_text(json.dumps(log, indent=1))


if __name__ == "__main__":
    main(**dict(option.split("=", 1) for option in sys.argv[1:]))
