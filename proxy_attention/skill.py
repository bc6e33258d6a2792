"""How an assistant probes, treats and compares fastai image classifiers

The package explains, probes and trains fastai image classifiers. Everything that users type comes from one import,
and the names of fastai stay as they are:

```python
from fastai.vision.all import *
from proxy_attention.all import *
```

## Rules

- Ask for test images on which the suspected cue is absent or misleading. Without them nobody can say whether a cure worked:
  a validation set with the same cue votes against every cure.
- Probe before you treat. Masking images where there is no shortcut costs accuracy.
- Report a difference only with at least five seeds, its interval and its controls. `cmp.verdict()` says `helps`, `harms`,
  `no effect shown` or `too few to tell`: repeat that word, and do not make it stronger.
- A heatmap is a hint and no proof. Only the user knows whether the hot place is the object.
- No file of the user's data is changed, and validation images are never masked.
- Loading a `.pkl` runs the code in it. Use `load_run(folder)`, which reads `model.safetensors`.
- Training, probes and heatmaps take one label per image, several labels (`target='palm'`, `probe(learn, label='palm')`) or numbers.
- `fit_head` and its peers take one label per image.

## Look

`ProxyInterpretation` is fastai's `Interpretation` with heatmaps. The target layer is auto-detected for CNNs and transformers;
`find_layer(model, xb)` says which one and why. The default attribution `auto` is `LayerCAM` for a CNN, and `LeGrad` or
`GradRollout` for a transformer, where CAMs miss the place:

```python
path = digits(n=400) # folders `train`, `valid`, `plain`, `flipped`: digits with a coloured patch that gives the label away
learn = digits_learner(path, bs=8) # any vision Learner will do
with learn.no_bar(), learn.no_logging(): learn.fit(2, 3e-3)
interp = ProxyInterpretation.from_learner(learn)
interp.plot_top_losses(4, heatmap=True)
xb,_ = learn.dls.valid.one_batch()
with LayerCAM(learn.model, target='pred') as attr: heat = attr(xb) # (images, height, width) in [0,1]
```

## Probe

`probe(learn)` replaces the attended place, the border, the rest and the look by those of other images, and counts how often
the prediction follows. `objects=` (boxes, masks or `draw_boxes(files)`) lets it see backgrounds. Its printed form says what
the model leans on, how sure that is, and what to do next; `leans` is empty where nothing was found:

```python
found = probe(learn)
assert 'place' in found.leans
found
```

## Train

`learn.fit_proxy(n, lr)` trains a suspect, probes it, and trains a successor without what it leans on; where nothing is found,
nothing is masked. `learn.fine_tune_proxy(n)` does the same for pretrained bodies, and `learn.fit_head('background')` fits the
last layer alone. A recipe forces a treatment, whatever the probe says, and every argument can be overridden by the name of a
strategy or by a function:

```python
cured = digits_learner(path, bs=8, cbs=ProxyAttention.shortcut())
with cured.no_bar(), cured.no_logging(): cured.fit_proxy(5, 1e-2)
accs = {k:[accuracy_on(o, path/k) for o in (learn,cured)] for k in ('plain','flipped')}
assert accs['flipped'][1]>.6>.3>accs['flipped'][0]
accs
```

`cured.proxy_attention.show()` shows what was served, `.log` lists it, `.history` has a row per step, and
`interp.compare_with(cured)` shows both models on the same images. `recipes` holds what is known of each recipe: when to use it,
cost, evidence, how it fails.

## Compare

`make_learner` is a function of `seed`. Each arm starts from the same weights and gets the same number of steps; the arms
`'no proxy'`, `'random mask'` and `'cutout'` are controls. Use five seeds or more (one here, for time):

```python
cmp = compare(lambda seed: digits_learner(path, seed=seed, bs=8), ['no proxy','random mask','shortcut'],
    seeds=1, epochs=4, lr=1e-2, test_dls={k:path/k for k in ('plain','flipped')}, bar=False)
cmp.verdict()
```

## Command line

`proxy-train FOLDER --tests plain=DIR,flipped=DIR` trains, `proxy-compare FOLDER --arms "no proxy,random mask,shortcut" --seeds 5`
compares, `proxy-explain RUN IMAGES` shows new images, `proxy-report RUN` writes one HTML page, `proxy-runs` lists runs, and
`proxy-train --resume RUN` resumes a run that was stopped. Each has `--help`; `--json` gives data instead of text where it is
offered. Where nobody has images without the cue, `--swapped rest` (if the background is suspected) or `--swapped hot` (a small
place; with `--suspect RUN`) adds the accuracy on validation images in which this part comes from another class; in Python it is
the metric `SwappedAccuracy('rest')`. The wrong part prefers the wrong model: ask the user which is suspected.
A run folder holds `config.toml`, `model.safetensors`, `tests.csv` and `proxy_log.csv`.

## When something fails

Errors are sentences that say what was wrong, with the value, and what to do: do that. A `ProxyWarning` is meant to be read
to the user, as it says that something was left out. Heat of fewer than 6×6 cells is coarse: use larger images or an earlier
`layer`."""

# AUTOGENERATED! DO NOT EDIT! File to edit: ../nbs/02_skill.ipynb.

# %% auto #0
__all__ = ['skill_md']

# %% ../nbs/02_skill.ipynb #950f3c66
def skill_md()->str: # Markdown with front matter
    "The docstring of this module as a `SKILL.md`"
    about,_,text = __doc__.partition('\n')
    about = f'{about}: Grad-CAM, heatmaps, shortcut learning'
    return f'---\nname: proxy_attention\ndescription: "{about}"\n---\n\n# proxy_attention\n\n{text.strip()}\n'
