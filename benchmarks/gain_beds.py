"""Beds of `gain.py` whose pixels are in memory: photographs are decoded once, and the path of an item costs next to nothing

`taken(data, out, 'cub')` decodes a source into files that every process maps; `learner(bed, pictures, seed)` is what each arm trains.
DATA holds `waterbed_raw.zip` (or `cub*.zip` with the same names in it), `cifar10_jpg.zip` (or `cifar*.tar.xz`), MNIST's 10,000 test
digits and `ants_bees.zip`. Tests are the published ones: CUB's own halves, CIFAR-10's 10,000, the 153 photographs of ants and bees."""
import io, re, sys, tarfile, zipfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
import numpy as np, pandas as pd, timm, torch, torch.nn.functional as F
from PIL import Image, ImageFilter, ImageOps
from filelock import FileLock
from torch import nn
from fasttransform import Transform
from fastai.callback.core import Callback
from fastai.data.core import Datasets
from fastai.data.transforms import Categorize, IntToFloatTensor, Normalize
from fastai.layers import ConvLayer, ResBlock
from fastai.learner import Learner
from fastai.metrics import accuracy
from fastai.optimizer import OptimWrapper
from fastai.torch_core import default_device, to_float
from fastai.vision.augment import Flip, RandTransform, aug_transforms
from fastai.vision.core import TensorImage
from timm.models.vision_transformer import VisionTransformer
from torchvision.models import resnet18
from proxy_attention.attribution.cams import half_type
from proxy_attention.core import by_name
from proxy_attention.data.beds import read_idx
from proxy_attention.data.digits import digits_net
sys.path.insert(0, str(Path(__file__).parent))
from waterbed import listed, lists, lite0

# what is decoded: (n,h,w,3) uint8, and a table of name, label and part

def _opened(raw): return Image.open(io.BytesIO(raw))
def _rgb(raw, size): return np.asarray(ImageOps.fit(_opened(raw).convert('RGB'), (size,size)))
def _many(f, some):
    with ThreadPoolExecutor() as pool: return np.stack([*pool.map(f, some)])

def _zipped(files):
    "Name → bytes, of all that the archives hold"
    return {o:z.read(o) for f in files for z in [zipfile.ZipFile(f)] for o in z.namelist() if not o.endswith('/')}

def cub(data, size=160):
    "Photographs of birds, and where the bird is"
    held = _zipped(sorted(data.glob('cub*.zip')) or [data/'waterbed_raw.zip'])
    files,train = (listed(held[f'raw/{f}'].decode()) for f in lists)
    rows = [dict(name=f'raw/birds/{f}', label=Path(f).parent.name, part='train' if train[k]=='1' else 'test')
            for k,f in files.items() if f'raw/birds/{f}' in held]
    masks = [held[o['name'].replace('birds', 'masks').replace('.jpg', '.png')] for o in rows]
    mask = lambda raw: np.asarray(_opened(raw).convert('L').resize((size,size), Image.NEAREST))>0
    return pd.DataFrame(rows), _many(partial(_rgb, size=size), [held[o['name']] for o in rows]), _many(mask, masks)

def _of_cifar(data):
    "Name → bytes"
    if tars := sorted(data.glob('cifar*.tar.xz')):
        with tarfile.open(tars[0]) as t: return {o.name:t.extractfile(o).read() for o in t if o.isfile()}
    return _zipped([data/'cifar10_jpg.zip'])

def _folders(held, size, parts):
    "Archives with `part/label/name.jpg`, perhaps further down"
    found = {o:re.search(r'(\w+)/([^/]+)/[^/]+\.(?:jpg|png)$', o) for o in sorted(held)}
    rows = [dict(name=k, label=o[2], part=parts[o[1]]) for k,o in found.items() if o and o[1] in parts]
    return pd.DataFrame(rows), _many(partial(_rgb, size=size), [held[o['name']] for o in rows]), None

def cifar(data): return _folders(_of_cifar(data), 32, dict(train='train', test='test'))
def ants(data): return _folders(_zipped([data/'ants_bees.zip']), 160, dict(train='train', valid='test'))
def mnist(data):
    "The first half to draw from, the second to test with"
    x,y = (read_idx(data/f'mnist_10k_{o}.gz') for o in ('images_idx3','labels_idx1'))
    names,parts = [f'{i:05d}' for i in range(len(x))],np.where(np.arange(len(x))<len(x)//2, 'train', 'test')
    return pd.DataFrame(dict(name=names, label=y.astype(str), part=parts)), np.stack([x]*3, -1), None

sources = dict(cub=cub, cifar=cifar, ants=ants, mnist=mnist)

# what nobody planted: photographs as a camera or a server might spoil them
def blurred(img, rng): return np.asarray(Image.fromarray(img).filter(ImageFilter.GaussianBlur(2)))
def noisy(img, rng): return (img+rng.normal(0, 25, img.shape)).round().clip(0, 255).astype(np.uint8)
def jpeg(img, rng):
    Image.fromarray(img).save(to := io.BytesIO(), 'jpeg', quality=10)
    return np.asarray(Image.open(to))

spoiled = dict(blur=blurred, noise=noisy, jpeg=jpeg)

def taken(
    data, # Folder of the real data
    out, # `pixels/SOURCE` is made in here, whole or not at all
    source:str # One of `sources`
)->Path:
    "A source, decoded: `pixels.npy` (n,3,h,w), `table.csv`, and of birds `masks.npy`"
    into = Path(out)/'pixels'/source
    into.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f'{into}.lock'):
        if into.exists(): return into
        table,pixels,masks = by_name(source, sources, 'source')(Path(data))
        if source in ('cub','ants'): table,pixels = _with_spoiled(table, pixels)
        part = into.with_name(f'{source}.part')
        part.mkdir(exist_ok=True)
        np.save(part/'pixels.npy', np.ascontiguousarray(pixels.transpose(0,3,1,2)))
        if masks is not None: np.save(part/'masks.npy', masks)
        table.to_csv(part/'table.csv', index=False)
        part.rename(into)
    return into

def _with_spoiled(table, pixels):
    "The test photographs once more for each of `spoiled`, as parts of their own"
    tables,arrays,at = [table],[pixels],np.flatnonzero(table.part=='test')
    for k,f in spoiled.items():
        arrays.append(_many(lambda i: f(pixels[i], np.random.default_rng([i,7])), at))
        tables.append(table.iloc[at].assign(name=[f'{k}/{o}' for o in table.name.iloc[at]], part=k))
    return pd.concat(tables, ignore_index=True), np.concatenate(arrays)

class Pictures:
    "A decoded source: what is asked for by its name is a view of the file"
    def __init__(self, folder):
        self.table = pd.read_csv(folder/'table.csv', dtype=str)
        self.pixels = torch.from_numpy(np.load(folder/'pixels.npy', mmap_mode='c'))
        self.masks = torch.from_numpy(np.load(folder/'masks.npy')) if (folder/'masks.npy').exists() else None
        self.at = {o:i for i,o in enumerate(self.table.name)}
        self.labels = dict(zip(self.table.name, self.table.label))
    def image(self, name): return TensorImage(self.pixels[self.at[name]])
    def label(self, name): return self.labels[name]
    def named(self, part): return self.table.name[self.table.part==part].tolist()
    def identity(self): return 'Pictures' # its items say which

class Told(Transform):
    "The image or the label of a name"
    def __init__(self, pictures, what): self.pictures,self.what = pictures,what
    def encodes(self, o:str): return getattr(self.pictures, self.what)(o)

class AtHand(Datasets):
    "Items that are made once; their pixels are views"
    def __getitem__(self, it):
        if isinstance(it, (list,slice,np.ndarray)): return super().__getitem__(it)
        made,i = self.__dict__.setdefault('made', {}),int(it)
        if i not in made: made[i] = super().__getitem__(i)
        return made[i]

# what is trained

class Shifted(RandTransform):
    "Every training image of a batch moved by up to `pad` pixels each way, black coming in"
    order,split_idx = 20,0
    def __init__(self, pad=4):
        super().__init__(p=1.)
        self.pad = pad
    def encodes(self, x:TensorImage):
        n,c,h,w = x.shape
        big,on = F.pad(x, [self.pad]*4),dict(device=x.device)
        top,left = torch.randint(0, 2*self.pad+1, (2,n,1), **on)
        item,channel = torch.arange(n, **on)[:,None,None,None],torch.arange(c, **on)[:,None,None]
        return big[item, channel, (top+torch.arange(h, **on))[:,None,:,None], (left+torch.arange(w, **on))[:,None,None]]

class Half(Callback):
    "Mixed precision in bfloat16 where the hardware has it, on a CPU as on a GPU; elsewhere full precision"
    order = 10
    def before_batch(self):
        device = self.dls.device.type
        self.cast = torch.autocast(device, torch.bfloat16, enabled=half_type(device) is torch.bfloat16)
        self.cast.__enter__()
    def after_pred(self): self.learn.pred = to_float(self.pred)
    def after_loss(self): self.cast.__exit__(None, None, None)

def small_resnet(n_out, wide=64):
    "A convolution and three residual blocks on 32 pixels, heat of 8×8 cells"
    blocks = [ResBlock(1, wide*a, wide*b, stride=2 if a<b else 1) for a,b in ((1,2),(2,4),(4,4))]
    return nn.Sequential(ConvLayer(3, wide), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(wide*4, n_out))

def narrow_resnet(n_out): return small_resnet(n_out, 32)
def small_vit(n_out, size=32): return VisionTransformer(size, 4, num_classes=n_out, embed_dim=192, depth=6, num_heads=3)
def tiny_vit(n_out): return VisionTransformer(32, 4, num_classes=n_out, embed_dim=96, depth=6, num_heads=3)
def scratch18(n_out): return resnet18(num_classes=n_out)
def digits(n_out): return digits_net(n_out)

def body_and_head(model):
    "Parameters of the body, and those of timm's classifier"
    head = set(model.get_classifier().parameters())
    return [[o for o in model.parameters() if o not in head], list(head)]

def birds_tfms(): return aug_transforms(size=128, max_rotate=0., max_warp=0., max_lighting=0., max_zoom=1.6, p_affine=1.)
def small_tfms(): return [Shifted(4), Flip()]
def digit_tfms(): return [Shifted(2)]

@dataclass(frozen=True)
class Bed:
    "What is trained on what, for how long"
    source:str
    net:object # `classes -> network`
    tfms:object # `() -> batch transforms`
    epochs:int
    lr:float
    bs:int=64
    per:int=None # Training images per class; None: all but a tenth, which validates
    valid_per:int=None # Validation images per class; None: a tenth
    pretrained:bool=False # The head is trained for an epoch first, and the first layers at a tenth of the rate
    stats:tuple=((.5,.5,.5),(.5,.5,.5)) # Mean and deviation that images are normalized with

birds = dict(source='cub', net=lite0, tfms=birds_tfms, lr=2e-3, pretrained=True)
beds = dict(
    cub=Bed(**birds, epochs=20), cub10=Bed(**birds, epochs=30, per=10), cub5=Bed(**birds, epochs=40, per=5),
    cifar=Bed('cifar', small_resnet, small_tfms, 16, 3e-3, bs=128), vit=Bed('cifar', small_vit, small_tfms, 16, 1e-3, bs=128),
    cifar4=Bed('cifar', narrow_resnet, small_tfms, 4, 5e-3, bs=128), # all images, as long as two cores allow
    cifar2000=Bed('cifar', narrow_resnet, small_tfms, 20, 5e-3, per=200, valid_per=100),
    vit2000=Bed('cifar', tiny_vit, small_tfms, 20, 1e-3, per=200, valid_per=100),
    mnist1000=Bed('mnist', digits, digit_tfms, 12, 3e-3, bs=32, per=100, valid_per=100),
    ants=Bed('ants', scratch18, birds_tfms, 16, 1e-3, bs=16))

def drawn(bed, table, seed):
    "Names to train on and to validate with, of each class alike, as `seed` draws them"
    rng,train,valid = np.random.default_rng([seed,17]),[],[]
    for _,o in table[table.part=='train'].groupby('label'):
        names = rng.permutation(o.name.to_numpy()).tolist()
        k = bed.valid_per or max(1, round(.1*len(names)))
        n = len(names)-k if bed.per is None else min(bed.per, len(names)-k)
        valid,train = valid+names[:k],train+names[k:k+n]
    return train,valid

def learner(
    bed:Bed,
    pictures:Pictures, # Of its source
    seed:int # Draws which images train; what draws the weights and the order is set before
)->Learner:
    "What every arm of a seed begins with"
    train,valid = drawn(bed, pictures.table, seed)
    both = [list(range(len(train))), list(range(len(train), len(train)+len(valid)))]
    tfms = [[Told(pictures, 'image')],[Told(pictures, 'label'), Categorize(sorted({*pictures.labels.values()}))]]
    sets = AtHand(train+valid, tfms, splits=both)
    dls = sets.dataloaders(bs=bed.bs, val_bs=256, num_workers=0, device=default_device(), after_item=[],
                           after_batch=[IntToFloatTensor(), *bed.tfms(), Normalize.from_stats(*bed.stats)])
    adam = partial(OptimWrapper, opt=torch.optim.AdamW, fused=True)
    net = bed.net(len(dls.vocab)).to(memory_format=torch.channels_last)
    split = dict(splitter=body_and_head) if bed.pretrained else {}
    learn = Learner(dls, net.to(dls.device), opt_func=adam, metrics=accuracy, cbs=Half(), **split)
    if bed.pretrained: learn.freeze()
    return learn

def tests(
    pictures:Pictures
)->dict: # Name → `learn -> loader`
    "The published test images, as they are and spoiled"
    return {k:partial(_loader, names) for k in ('test',*spoiled) if (names := pictures.named(k))}

def _loader(names, learn): return learn.dls.test_dl(names, with_labels=True)
