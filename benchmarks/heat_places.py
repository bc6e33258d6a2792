"""Where does heat lie, against the true bird? `python benchmarks/heat_places.py DATA` writes `heat_places.csv`

Waterbed (`waterbed.py`), places agree with birds in 95 % of the training images; the heat is that of validation images, in which they
agree in a half. `found` is the share of the bird that lies in the hottest 30 % of the image, `bird` the share of these that is bird.
A body as ImageNet has made it, with its 1,000 classes or with a last layer fitted to land birds and water birds; each at 128 pixels,
as the images are, and enlarged to 224. `known` are images whose place agrees with the bird, `odd` those where it does not."""
import sys, warnings
from pathlib import Path
import numpy as np, pandas as pd, torch
from PIL import Image
from fastcore.script import call_parse
from proxy_attention.attribution.cams import GradCAM, HiResCAM, LayerCAM
from proxy_attention.attribution.heatmap import normalize_heat
from proxy_attention.attribution.methods import Suspect, heat_of
from proxy_attention.data.loaders import whole_dl
from proxy_attention.masking.masker import Masker, stretch_mask
sys.path.insert(0, str(Path(__file__).parent))
from bench_tables import keep_table
from head_only import learner
from waterbed import lite0, unpacked

def ways(learn):
    "Name → what makes heat"
    models = dict(imagenet=lite0(None), fitted=learn)
    for whose,model in models.items():
        for size in (None,224):
            yield (whose,size or 128,'LayerCAM','margin'), Suspect(model, LayerCAM, size)(learn.model, target='margin')
        if whose=='fitted':
            for target in ('pred','label'): yield (whose,224,'LayerCAM',target), Suspect(model, LayerCAM, 224)(learn.model, target=target)
        for cam in (GradCAM,HiResCAM): yield (whose,224,cam.__name__,'margin'), Suspect(model, cam, 224)(learn.model, target='margin')

def scores(heat, bird):
    "Of each image: share of the bird in the hottest 30 %, and share of these that is bird"
    hot = stretch_mask(Masker('area', 'zero', area=.3, max_area=1.).drawn(normalize_heat(heat)), bird.shape[1:])
    both = (hot&bird).float().sum((1,2))
    return both/bird.float().sum((1,2)), both/hot.float().sum((1,2)).clamp(min=1)

@call_parse
def main(data:str, # Folder of the real data
         out:str='runs/head_only', # Beds are kept here
         seeds:str='11,12', # Each of another bed
         n:int=300, # At most so many validation images
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
        about = pd.read_csv(learn.dls.path/'metadata.csv').set_index('img_filename')
        items = learn.dls.valid_ds.items[::-(-len(learn.dls.valid_ds)//n)]
        names = [Path(o).relative_to(learn.dls.path) for o in items]
        bird = torch.stack([torch.from_numpy(np.array(Image.open((learn.dls.path/'masks'/o).with_suffix('.png'))))>0 for o in names])
        agrees = np.array([about.loc[o.as_posix(),'y']==about.loc[o.as_posix(),'place'] for o in names])
        dl = whole_dl(learn.dls, items)
        for key,attr in ways(learn):
            found,precise = scores(heat_of(attr, dl)[0], bird)
            for where,at in dict(known=agrees, odd=~agrees).items():
                rows.append(dict(zip(('whose','size','cam','target'), key), images=where, seed=seed, n=int(at.sum()),
                                 found=float(found[at].mean()), bird=float(precise[at].mean()), area=float(bird[at].float().mean())))
            print(rows[-2:], flush=True)
    keep_table(pd.DataFrame(rows).round(4), Path(csv), ['seed','whose','size','cam','target','images'])
