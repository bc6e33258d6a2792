"""Where does heat lie, against the true bird? `python benchmarks/heat_places.py DATA` writes `heat_places.csv`

Waterbed (`waterbed.py`), places agree with birds in 95 % of the training images and in a half of the validation images. `found` is the
share of the bird that lies in the hottest 30 % of the image, `bird` the share of these that is bird. `whose` heat it is:
`imagenet`, a body as ImageNet has made it, with its 1,000 classes; `fitted`, with a last layer fitted to land birds and water birds;
`epoch 1` to `epoch 3` of a fit of all layers, as `waterbed_cure.py` trains it, and `all epochs`, their mean.
Each at 128 pixels, as the images are, or enlarged to 224; `LayerCAM` takes two grids there, `LastLayer` only the last (4×4 or 7×7).
That two are better at 224 was seen on seed 1. `known` are images whose place agrees with the bird, `odd` those where it does
not, in the validation set and in the training set (`part`): the latter are what a recipe masks."""
import sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from fastai.vision.all import Callback
from fastcore.script import call_parse
from proxy_attention.attribution.cams import CAM, GradCAM, LayerCAM
from proxy_attention.attribution.heatmap import normalize_heat
from proxy_attention.attribution.methods import Suspect, heat_of
from proxy_attention.data.loaders import whole_dl
from proxy_attention.masking.masker import Masker, stretch_mask
sys.path.insert(0, str(Path(__file__).parent))
from bench_tables import keep_table
from head_only import learner
from waterbed import lite0, unpacked
from waterbed_cure import learner as whole

class LastLayer(LayerCAM):
    "`LayerCAM` of the last layer alone, also where its grid is coarse"
    found_layers = CAM.found_layers

def ways(learn):
    "Name → what makes heat"
    models = dict(imagenet=lite0(None), fitted=learn)
    for whose,model in models.items():
        for cam in (LayerCAM,LastLayer,GradCAM):
            for size in (None,224):
                yield (whose,size or 128,cam.__name__,'margin'), Suspect(model, cam, size)(learn.model, target='margin')
        if whose=='fitted':
            for target in ('pred','label'): yield (whose,224,'LayerCAM',target), Suspect(model, LayerCAM, 224)(learn.model, target=target)

class HeatOfEpochs(Callback):
    "The heat of some images after each epoch"
    def __init__(self, dls): self.dls,self.heats = dls,[]
    def after_epoch(self):
        attr = LayerCAM(self.model, target='margin')
        self.heats.append([normalize_heat(heat_of(attr, dl)[0]) for dl in self.dls])

def of_epochs(learn, dls, epochs=3):
    "Name → heats, one of each loader"
    cb = HeatOfEpochs(dls)
    learn.fit_one_cycle(epochs, 1e-3, cbs=cb)
    for k,heats in enumerate(cb.heats, 1): yield (f'epoch {k}',128,'LayerCAM','margin'), heats
    yield ('all epochs',128,'LayerCAM','margin'), [torch.stack(o).mean(0) for o in zip(*cb.heats)]

def scores(heat, bird):
    "Of each image: share of the bird in the hottest 30 %, and share of these that is bird"
    hot = stretch_mask(Masker('area', 'zero', area=.3, max_area=1.).drawn(normalize_heat(heat)), bird.shape[1:])
    both = (hot&bird).float().sum((1,2))
    return both/bird.float().sum((1,2)), both/hot.float().sum((1,2)).clamp(min=1)

class Seen:
    "Images of a part of the bed, with the place of the bird in each, and whether its background agrees with it"
    def __init__(self, learn, part, n):
        path,about = learn.dls.path,pd.read_csv(learn.dls.path/'metadata.csv').set_index('img_filename')
        names = [Path(o).relative_to(path) for o in getattr(learn.dls, part).items]
        agrees = np.array([about.loc[o.as_posix(),'y']==about.loc[o.as_posix(),'place'] for o in names])
        some = [i for kind in (agrees,~agrees) for at in [np.flatnonzero(kind)] for i in at[::-(-len(at)//n)]]
        self.part,self.agrees,self.names = part.removesuffix('_ds'),agrees[some],[names[i] for i in some]
        self.items = [path/o for o in self.names]
        mask = lambda o: np.array(Image.open((path/'masks'/o).with_suffix('.png')))>0
        self.bird = torch.stack([torch.from_numpy(mask(o)) for o in self.names])
    def rows(self, key, heat, seed):
        found,precise = scores(heat, self.bird)
        return [dict(zip(('whose','size','cam','target'), key), part=self.part, images=where, seed=seed, n=int(at.sum()),
                     found=float(found[at].mean()), bird=float(precise[at].mean()), area=float(self.bird[at].float().mean()))
                for where,at in dict(known=self.agrees, odd=~self.agrees).items()]

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/head_only', # Beds are kept here
         seeds:str='11,12,13,14,15', # Each of another bed
         n:int=150, # At most so many images of each kind
         csv:str=str(Path(__file__).with_suffix('.csv')), # Where the table goes
):
    "Measure where heat lies"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    out,rows = Path(out).resolve(),[]
    raw = unpacked(data, out)
    for seed in map(int, seeds.split(',')):
        learn = learner(raw, out, '0.95', seed)
        learn.fit_head(None, passes=1)
        seen = [Seen(learn, o, n) for o in ('train_ds','valid_ds')]
        dls = [whole_dl(learn.dls, o.items) for o in seen]
        heats = ((key,[heat_of(attr, dl)[0] for dl in dls]) for key,attr in ways(learn))
        for key,found in (*heats, *of_epochs(whole(raw, out, '0.95', seed), dls)):
            rows += [r for o,heat in zip(seen, found) for r in o.rows(key, heat, seed)]
        keep_table(pd.DataFrame(rows).round(4), Path(csv), ['seed','whose','size','cam','target','part','images'])
