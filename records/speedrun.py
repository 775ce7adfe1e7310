"""See token-wise learning happen: a model learns, on two cores, to find scenes and to tell whose colour is whose.

    pip install torch numpy && python records/speedrun.py     # and speedrun.npz beside it; torch 2.9 or newer
    python records/speedrun.py model=clip,relu,heads,filip,smooth steps=60    # writes learning.svg and words.svg

A scene shows two to four tinted things in a grid of 3 x 3 ("a red cat, a blue crab and a pink kiwi"). A patch shows one
thing at most, and patches do not mix; words do. Every third thing is reserved: no training scene that shows one has
anything red, green or blue. The 1,000 test scenes show three reserved things in these colours, so a caption with two
colours exchanged is as new as the true one. The target: at least 90 % of the exchanged captions are rejected (chance:
50), and half of the scenes are found in both directions (chance: 0.1), each with p < 0.01 over the seeds. ``smooth``
finds 97.5 / 92.5 % and rejects 99.4 % (seeds 0 to 2, p 0.0007) in 4 CPU seconds a training (one thread, Zen 4).

``filip`` averages each patch's best word (s^I) and each word's best patch (s^T) (Yao et al., ICLR 2022); ``smooth``
trains with t log mean exp(s / t) for the maximum, and is tested with the maximum. ``clip`` compares one vector a side,
the mean of its tokens, ``relu`` that of their positive parts, ``heads`` 16 attention poolings.
"""

import hashlib
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

WIDTH = 64  # the one dial, of both towers and of a token's vector; each width is trained with 3,840 scenes
BATCH, STEPS, RATE, MUON_RATE = 64, 3840 // WIDTH, 0.4 / WIDTH, 0.08  # RATE is AdamW's
SMOOTH = 0.1  # temperature of the smooth maximum
SCALE = 10.0  # of the similarities at first; then it is learned
WHITE = 128  # principal components kept of a patch's 3 * 12 * 12 numbers
INKS = {"clip": "#888", "relu": "#a3c", "heads": "#c70", "filip": "#06c", "smooth": "#083"}  # of the models' curves

# --- Data: 420 drawings of things in grey, and eight colours to tint them ---
SPRITES = Path(__file__).with_name("speedrun.npz")  # Noto Emoji, Google Inc., Apache-2.0: see speedrun.npz.license
SHA256 = "51dbe047edb7ca0a9dc6bb6d36746d3682152171808defa3ed7f6f255896f708"
COLOURS = {  # the first three are never near a reserved thing in training
    "red": (225, 40, 40), "green": (40, 170, 60), "blue": (50, 80, 225), "yellow": (245, 215, 40),
    "purple": (145, 60, 185), "orange": (245, 140, 30), "pink": (245, 140, 190), "cyan": (60, 205, 220),
}  # fmt: skip
RESERVED, SIDE, GRID, PATCH = 3, 24, 3, 12  # every 3rd thing; its pixels; 3 x 3 things; 2 x 2 patches each
TOKENS = 16  # four things have 16 patches at most: the 16 with the most ink are the tokens of a picture of 36


class Scenes(NamedTuple):
    """Scenes as arrays [n, things]: numbers of things (-1 for none) and colours, and their cells in the grid."""

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
        """Return scenes of two to four things; those with a reserved thing have nothing red, green or blue."""
        things = random.integers(len(self.names), size=(count, 4))
        things[np.arange(4) >= random.integers(2, 5, (count, 1))] = -1
        order = random.random((count, len(COLOURS)))
        order[(things % RESERVED == 0).any(1), :3] += 1  # they go behind the other five (no thing, -1, is not reserved)
        return Scenes(things, order.argsort(1)[:, :4], random.random((count, GRID**2)).argsort(1)[:, :4])

    def test_scenes(self, count=1000, seed=10**6):
        """Return scenes of three reserved things, one red, one green, one blue."""
        random = np.random.default_rng(seed)
        reserved = np.arange(0, len(self.names), RESERVED)
        things, colours, cells = (random.random((count, n)).argsort(1)[:, :3] for n in (len(reserved), 3, GRID**2))
        return Scenes(reserved[things], colours, cells)

    def draw(self, scenes):
        """Return the pictures [n, 3, 72, 72] as ink, 2 * (1 - light): 0 is white paper, 2 is black."""
        count, shown = len(scenes.things), scenes.things >= 0
        grey, alpha = self.pixels[scenes.things[shown]].unbind(-1)
        tint = self.rgb[scenes.colours[shown]][:, :, None, None] * (0.35 + 0.65 * grey[:, None])
        page = torch.zeros(count * GRID**2, 3, SIDE, SIDE)  # every cell of every scene
        page[(GRID**2 * np.arange(count)[:, None] + scenes.cells)[shown]] = 2 * alpha[:, None] * (1 - tint)
        return page.view(count, GRID, GRID, 3, SIDE, SIDE).permute(0, 3, 1, 4, 2, 5).flatten(4).flatten(2, 3)

    def captions(self, scenes):
        """Return captions such as "a red cat, a blue crab and a pink kiwi"."""
        colours = list(COLOURS)
        for things, tints in zip(scenes.things, scenes.colours, strict=True):
            parts = [f"a {colours[c]} {self.names[t]}" for t, c in zip(things, tints, strict=True) if t >= 0]
            yield ", ".join(parts[:-1]) + " and " + parts[-1]

    def encode(self, scenes):
        """Return the numbers of the captions' words [n, longest] int64, with 0 behind the last word."""
        rows = [torch.tensor([self.ids[w] for w in c.replace(",", "").split()]) for c in self.captions(scenes)]
        return nn.utils.rnn.pad_sequence(rows, batch_first=True)


# --- Towers: patches stay local, words see their caption in one pre-norm layer; every token is projected ---
class Block(nn.Module):
    def __init__(self, width, heads=4):
        super().__init__()
        self.heads = heads
        self.norm1, self.qkv, self.proj = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm2, self.fc1, self.fc2 = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x, mask=None):
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v, mask).transpose(1, 2).flatten(2))
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


def inked(pixels):
    """Return the numbers of the patches with the most ink [n, TOKENS] of pictures [n, 3, 72, 72]."""
    return F.avg_pool2d(pixels, PATCH).sum(1).flatten(1).topk(TOKENS).indices.sort().values


class ImageTower(nn.Module):
    """Pictures [n, 3, 72, 72] to a token for each of their inked patches [n, TOKENS, width]."""

    def __init__(self, width):
        super().__init__()
        self.register_buffer("mean", torch.zeros(3 * PATCH**2))
        self.register_buffer("whitening", torch.zeros(3 * PATCH**2, WHITE))
        self.stem = nn.Sequential(nn.Linear(WHITE, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
        self.norm = nn.LayerNorm(width)
        self.projection = nn.Linear(width, width, bias=False)

    def whiten(self, pixels):
        """Set the first layer, which is not trained: PCA of patches that are not blank, scaled to variances near 1."""
        patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).flatten(0, 1)
        patches = patches[patches.abs().sum(1) > 0]
        values, vectors = torch.linalg.eigh(torch.cov(patches.T))
        self.mean.copy_(patches.mean(0))
        self.whitening.copy_(vectors[:, -WHITE:] * (values[-WHITE:] + 0.01) ** -0.5)

    def forward(self, pixels):
        patches = F.unfold(pixels, PATCH, stride=PATCH).transpose(1, 2).take_along_dim(inked(pixels)[:, :, None], 1)
        return self.projection(self.norm(self.stem((patches - self.mean) @ self.whitening)))


class TextTower(nn.Module):
    """Numbers of words [n, longest] to a token for each word [n, longest, width]; a word sees the whole caption."""

    def __init__(self, width, words, longest=16):
        super().__init__()
        self.embedding = nn.Embedding.from_pretrained(0.02 * torch.randn(words, width), freeze=False)
        self.positions = nn.Parameter(0.01 * torch.randn(longest, width))
        self.before = nn.Linear(width, width, bias=False)  # each word gets a map of the word before it
        self.block, self.norm = Block(width), nn.LayerNorm(width)
        self.projection = nn.Linear(width, width, bias=False)

    def forward(self, ids):
        x = self.embedding(ids) + self.positions[: ids.shape[1]]
        x = x + F.pad(self.before(x[:, :-1]), (0, 0, 1, 0))
        return self.projection(self.norm(self.block(x, (ids > 0)[:, None, None, :])))


class Model(nn.Module):
    """Both towers; a side gives unit vectors [n, tokens, d] and which of them count. A pooled model has one token."""

    def __init__(self, kind, words, width=WIDTH):
        super().__init__()
        self.kind, self.image, self.text = kind, ImageTower(width), TextTower(width, words)
        if kind == "heads":  # of each side
            self.queries = nn.Parameter(0.02 * torch.randn(2, 16, width))
            self.values = nn.Parameter(width**-0.5 * torch.randn(2, 16, width, width))
        self.log_scale = nn.Parameter(torch.tensor(math.log(SCALE)))

    def images(self, pixels):
        return self.pool(0, self.image(pixels), torch.ones(len(pixels), TOKENS, dtype=torch.bool))[0]

    def texts(self, ids):
        return self.pool(1, self.text(ids), ids > 0)

    def pool(self, side, tokens, mask):
        if self.kind in ("clip", "relu"):
            kept = (tokens.relu() if self.kind == "relu" else tokens) * mask[:, :, None]
            tokens = kept.sum(1, keepdim=True) / mask.sum(1)[:, None, None]
        if self.kind == "heads":
            weights = (tokens @ self.queries[side].T).masked_fill(~mask[:, :, None], -1e9).softmax(1)
            pooled = weights.transpose(1, 2) @ tokens  # [n, 16, width]
            tokens = torch.einsum("nhw,hwd->nhd", pooled, self.values[side]).flatten(1)[:, None]  # [n, 1, 16 * width]
        return F.normalize(tokens, dim=2), mask[:, : tokens.shape[1]]


def similarity(images, texts, mask, smooth=0.0):
    """Return s^I and s^T [n, m] of images [n, p, d] and texts [m, l, d] with mask [m, l], unit vectors.

    Padding has no part in a maximum or mean; "a" and "and" have. ``smooth``: its temperature; 0 is the maximum.
    """
    pairs = (images.flatten(0, 1) @ texts.flatten(0, 1).T).view(*images.shape[:2], *texts.shape[:2])  # [n, p, m, l]
    words = mask.sum(1)
    if smooth:  # one exponential serves both directions; a cosine is at most 1, so it cannot overflow
        e = ((pairs - 1) / smooth).exp() * mask
        best_word, best_patch = (1 + smooth * (x + 1e-30).log() for x in (e.sum(3) / words, e.mean(1)))
    else:
        best_word, best_patch = pairs.masked_fill(~mask, -2).max(3).values, pairs.max(1).values
    return best_word.mean(1), (best_patch * mask).sum(2) / words


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
    """Return in percent R@1 image to text, text to image, exchanges rejected by s^I, by s^T; always by maxima."""
    images = torch.cat([model.images(pixels) for pixels in world.draw(scenes).split(200)])
    texts, mask = model.texts(world.encode(scenes))
    i2t, t2i = map(torch.cat, zip(*(similarity(part, texts, mask) for part in images.split(20)), strict=True))
    rejected = []
    for order in ([1, 0, 2], [2, 1, 0], [0, 2, 1]):  # two of the three colours exchanged
        others, _ = model.texts(world.encode(scenes._replace(colours=scenes.colours[:, order])))
        pairs = images @ others.transpose(1, 2)  # [n, patches, words]; all captions have the same number of words
        for true, other in ((i2t, pairs.amax(2).mean(1)), (t2i, pairs.amax(1).mean(1))):
            lead = true.diagonal() - other  # of the true caption; within rounding it counts half
            rejected.append(((lead > 1e-6).float() + (lead > -1e-6).float()).mean() / 2)
    return [100 * float(x) for x in (recall(i2t), recall(t2i.T), np.mean(rejected[::2]), np.mean(rejected[1::2]))]


# --- Training ---
def optimisers(model, steps):
    """Return Muon for the weights of linear layers, AdamW for the rest (embeddings, biases, heads), and schedules."""
    matrices = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    rest = [p for p in model.parameters() if all(p is not other for other in (*matrices, model.log_scale))]
    groups = [{"params": rest}, {"params": [model.log_scale], "lr": 3 * RATE}]
    adamw = torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.98), weight_decay=0.0)
    muon = torch.optim.Muon(matrices, lr=MUON_RATE, weight_decay=0.0)
    shape = {"total_steps": max(steps, 20), "pct_start": 0.1, "anneal_strategy": "linear", "cycle_momentum": False}
    schedules = [OneCycleLR(o, [group["lr"] for group in o.param_groups], **shape) for o in (adamw, muon)]
    return [adamw, muon, *schedules]


def clock():  # the wall's seconds, and those of all threads
    return np.array([time.perf_counter(), time.process_time()])


def train(world, kind, seed, steps):
    """Return the model, its curve [(step, seconds, *evaluation)], and its seconds of wall and processor."""
    torch.manual_seed(seed)
    random, model = np.random.default_rng(seed), Model(kind, len(world.ids))
    curve, seconds, watched, start = [], 0, world.test_scenes(200, 10**6 + 1), clock()
    model.image.whiten(world.draw(world.training_scenes(random, 500)))
    updates = optimisers(model, steps)
    for step in range(1, steps + 1):
        scenes = world.training_scenes(random, BATCH)
        texts, mask = model.texts(world.encode(scenes))
        scores = similarity(model.images(world.draw(scenes)), texts, mask, SMOOTH if kind == "smooth" else 0)
        loss = contrastive_loss(*scores, model.log_scale.exp().clamp(max=100))
        model.zero_grad()
        loss.backward()
        for update in updates:
            update.step()
        if step % max(1, steps // 8) == 0 or step == steps:  # on 200 other scenes; not timed
            seconds = seconds + clock() - start
            curve.append((step, seconds[0], *evaluate(world, model, watched)))
            print("{:6} seed {}  step {:4}  {:5.1f} s  of 200: {:4.1f} / {:4.1f} %  exchange rejected {:4.1f}, {:4.1f}"
                  .format(kind, seed, *curve[-1]), flush=True)  # fmt: skip
            start = clock()
    return model, curve, seconds


SVG = '<svg xmlns="http://www.w3.org/2000/svg" width="{}" height="{}" font-size="12" style="background:#fff">{}</svg>'


def p_above(values, target):
    """Return the one-sided p of Student's t test of a mean above the target; a million draws spare us SciPy."""
    if len(values) < 2:
        return math.nan
    t = (np.mean(values) - target) / max(np.std(values, ddof=1), 1e-9) * len(values) ** 0.5
    return (np.random.default_rng(0).standard_t(len(values) - 1, 10**6) >= t).mean()


def draw_curves(curves):
    """Return the learning curves as SVG: found (solid) and exchange rejected (dashed), by step and by second."""
    text = '<text x="40" y="262">solid: found, R@1 of 200; dashed: exchange rejected; percent</text>'
    text += "".join(f'<text x="{430 + 70 * i}" y="262" fill="{INKS[k]}">{k}</text>' for i, k in enumerate(dict(curves)))
    for left, axis, name in ((40, 0, "steps"), (390, 1, "seconds")):
        most = max(curve[-1][axis] for _, curve in curves)
        text += f'<path d="M{left} 20v200h300" fill="none" stroke="black"/>'
        text += f'<text x="{left + 250}" y="236">{most:.0f} {name}</text>'
        text += "".join(f'<text x="{left - 28}" y="{224 - 2 * y}">{y}</text>' for y in (0, 50, 90))
        for kind, curve in curves:
            for dash, k in (("none", 2), ("4", 4)):  # c[k] + c[k + 1]: the mean of both directions, 2 pixels a percent
                points = " ".join(f"{left + 300 * c[axis] / most:.1f},{220 - c[k] - c[k + 1]:.1f}" for c in curve)
                text += f'<polyline points="{points}" fill="none" stroke="{INKS[kind]}" stroke-dasharray="{dash}"/>'
    return SVG.format(710, 275, text)


@torch.no_grad()
def draw_words(world, model, scenes):
    """Return scenes as SVG, and each again for its words: the less an inked patch is like the word, the darker."""
    pictures, text = world.draw(scenes), ""
    images, (texts, _), places = model.images(pictures), model.texts(world.encode(scenes)), inked(pictures)
    for row, caption in enumerate(world.captions(scenes)):
        pixels = (255 - 127.5 * pictures[row]).to(torch.uint8).permute(1, 2, 0).numpy()
        drawn = np.argwhere((pixels < 255).any(2)).tolist()
        dots = "".join(f'<path d="M{x} {y}h1" stroke="rgb{tuple(pixels[y, x].tolist())}"/>' for y, x in drawn)
        words = [(i, w) for i, w in enumerate(caption.replace(",", "").split()) if w not in ("a", "and")]
        for column, (i, word) in enumerate([(0, ""), *words]):  # first the scene alone
            scene = f'<use href="#scene{row}"/>' if word else f'<g id="scene{row}">{dots}</g>'
            text += f'<g transform="translate({10 + 84 * column} {10 + 98 * row})"><text y="85">{word}</text>{scene}'
            seen = images[row] @ texts[row, i]
            dark = 0.8 * ((seen.max() - seen) / (seen.max() - seen.min())).sqrt()
            for k, opacity in zip(places[row].tolist(), dark, strict=True) if word else ():
                text += f'<path d="M{k % 6 * PATCH} {k // 6 * PATCH}h12v12h-12" opacity="{opacity:.2f}"/>'
            text += "</g>"
    return SVG.format(600, 10 + 98 * len(pictures), text)


def main(model="smooth", seeds=3, steps=STEPS):
    if unknown := set(model.split(",")) - set(INKS):
        sys.exit(f"error: model={unknown.pop()}: it is one of {', '.join(INKS)}, or several with commas")
    torch.set_num_threads(min(2, torch.get_num_threads()))  # the record is for two cores
    world = World()
    tests, curves = world.test_scenes(), []
    for kind in model.split(","):
        results, times = [], []
        for seed in range(int(seeds)):
            trained, curve, seconds = train(world, kind, seed, int(steps))
            results.append(evaluate(world, trained, tests))
            times.append(seconds)
            curves.append((kind, curve))
        (i2t, t2i, *rejected), (wall, cpu) = np.mean(results, axis=0), np.mean(times, axis=0)
        p = max(p_above(np.min([r[:2] for r in results], 1), 50), p_above(np.mean([r[2:] for r in results], 1), 90))
        print(f"{kind:6} {seeds} seeds, {steps} steps: found {i2t:.1f} / {t2i:.1f} %, exchange rejected "
              f"{np.mean(rejected):.1f} %, p {p:.1g}, {wall:.1f} s ({cpu:.1f} CPU s) a training")  # fmt: skip
    Path("learning.svg").write_text(draw_curves(curves))
    if trained.kind in ("filip", "smooth"):
        Path("words.svg").write_text(draw_words(world, trained, Scenes(*(a[:3] for a in tests))))


if __name__ == "__main__":
    main(**dict(option.split("=", 1) for option in sys.argv[1:]))
