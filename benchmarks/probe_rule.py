"""How often is the probe right? `python benchmarks/probe_rule.py DATA` trains networks, probes them, and writes `probe_rule.csv`

DATA is the folder of the real data. Each network is drawn by its number: photographs of birds, insects and scenes, CIFAR-10 and digits;
without a cue, with a cue on one class or on all, or on a background; from scratch or pretrained; for few epochs or many.
Whether it leans on the cue is measured: `aligned` and `flipped` are its accuracies where the cue says the right class, and another one.
Bounds are chosen on the networks with even numbers, and reported on those with odd ones.
The same command goes on where it was stopped."""
import io, shutil, sys, tempfile, time, warnings, zipfile
from pathlib import Path
import numpy as np, pandas as pd, timm, torch
from fastai.vision.all import CrossEntropyLossFlat, ImageDataLoaders, Learner, accuracy, get_image_files, set_seed
from fastcore.script import call_parse
from PIL import Image
from proxy_attention.data.cues import cues, on_places, planted, place_test_sets
from proxy_attention.data.digits import accuracy_on, digit_images, digits_net
from proxy_attention.interpret.probe import probe
sys.path.insert(0, str(Path(__file__).parent))
from waterbed import birds, lite0, places, unpacked as birds_unpacked

nets = dict(
    small=digits_net,
    resnet=lambda c: timm.create_model('resnet10t', num_classes=c),
    mobilenet=lambda c: timm.create_model('mobilenetv3_small_050', num_classes=c),
    regnet=lambda c: timm.create_model('regnetx_002', num_classes=c),
    lite0=lite0)
late = 100 # the draw of networks is another one from this number on
boxed = 200 # from here on only birds on places, and boxes around twenty of them are known
families = 'Warbler Sparrow Gull Woodpecker Flycatcher Tern'.split()

def unpacked(z, wanted, out, side=128):
    "Images of a zip file as a folder per class; `wanted(name)` gives the class or None"
    out = Path(out)
    if (out/'done').exists(): return out
    for o in z.namelist():
        if o.endswith('.jpg') and (label := wanted(o)):
            f = out/label/o.replace('/', '_')
            f.parent.mkdir(parents=True, exist_ok=True)
            img = Image.open(io.BytesIO(z.read(o))).convert('RGB')
            img.thumbnail((2*side,2*side))
            img.save(f, quality=97)
    (out/'done').touch()
    return out

def family(o): return next((k for k in families if '/birds/' in o and k in o), None)
def scene(o): return next((k for k in ('water','land') if o.startswith(f'raw/{k}/')), None)
def vehicle(o): return next((k for k in ('automobile','truck','airplane') if o.startswith(f'train/{k}/')), None)

def sources(data, out):
    "Folders of images, a folder per class"
    data,out = Path(data),Path(out)
    bed,cifar,insects = (zipfile.ZipFile(data/f'{o}.zip') for o in ('waterbed_raw','cifar10_jpg','ants_bees'))
    x,y = digit_images()
    for i,(img,label) in enumerate(zip(x, y.tolist())):
        f = out/'digits'/str(label)/f'{i}.png'
        if not f.exists():
            f.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(img).save(f)
    return dict(
        raw=birds_unpacked(data, out), birds=unpacked(bed, family, out/'birds'), scenes=unpacked(bed, scene, out/'scenes'),
        vehicles=unpacked(cifar, vehicle, out/'vehicles'),
        insects=unpacked(insects, lambda o: Path(o).parent.name if Path(o).parent.name in ('ants','bees') else None, out/'insects'),
        digits=out/'digits')

def drawn(i):
    "What network number `i` is"
    rng = np.random.default_rng([2026,i])
    pick = lambda *o: o[int(rng.integers(len(o)))]
    many = i>=late # of the first, most had no cue to lean on, or had learned nothing: now more with one, trained for longer
    plain = ('none',*(f'random {k}' for k in cues))
    cue = pick(*(('background',)*3+('no background',)*3+(*cues,)*2+(pick(*plain),)*7 if many else
                 ('none','none','background','background','no background',*cues,*cues,*plain[1:])))
    if i>=boxed: cue = pick('background','no background')
    net = pick('lite0','resnet','mobilenet') if 'background' in cue else pick(*nets)
    photos = ('birds','scenes','insects') if net=='lite0' else ('birds','scenes','insects','vehicles','digits')
    source = 'birds on places' if 'background' in cue else pick(*photos)
    size = 96 if net=='lite0' else 32 if source in ('vehicles','digits') else 64
    n = 230 if source=='insects' else 250 if net=='lite0' else int(pick(300,400,500))
    epochs = int(pick(1,1,2) if net=='lite0' else pick(2,4,8))
    if i>=60 and epochs<8 and net!='lite0': epochs = 2*epochs+2 # too many of the first 60 had learned nothing
    if many and net=='lite0': epochs += 1
    on,conflict = pick('all','all','one'),float(pick(0.,0.,.03))
    if many or cue=='none': on = 'all'
    return dict(number=i, source=source, cue=cue, on=on, conflict=conflict, net=net, size=size, n_train=n, epochs=epochs)

def asks_train(o):
    "Validation images of a background agree with their place in a half; where a user has such, the training images say more"
    return o['number']>=late and 'background' in o['cue']

def boxes(bed, n=20):
    "File → box of a few training birds, as somebody would draw them"
    masks = get_image_files(bed/'masks'/'train').sorted()
    some = [masks[int(i)] for i in np.random.default_rng(0).permutation(len(masks))[:n]]
    return {next((bed/'train'/o.parent.name).glob(f'{o.stem}.*')):Image.open(o).getbbox() for o in some}

def no_cue(img, says, n, rng):
    "A black pixel in a corner of every image, a 255th brighter from class to class: `planted` wants a difference, and no network sees it"
    img.putpixel((0,0), (says,)*3)
    return img,None

def made(o, at, path):
    "Its bed, and test sets by name"
    if 'background' in o['cue']:
        rho = .5 if o['cue']=='no background' else 1-o['conflict']
        bed = on_places(birds(at['raw']), places(at['raw']), path, rho=rho, seed=o['number'], size=o['size'],
                        n_train=o['n_train'], n_test=200)
        return bed,place_test_sets(bed)
    folder = at[o['source']]
    on = 'all' if o['on']=='all' or 'random' in o['cue'] else sorted(f.name for f in folder.iterdir() if f.is_dir())[0]
    n = sum(f.is_dir() for f in folder.iterdir())
    conflict = 1-1/n if 'random' in o['cue'] else o['conflict'] # a cue that is drawn for each image says nothing
    bed = planted(folder, path, no_cue if o['cue']=='none' else o['cue'].split()[-1], on, conflict, o['number'], o['size'], o['n_train'],
                  100 if o['source']=='insects' else 200)
    return bed,{k:bed/k for k in ('plain','aligned','flipped')}

def row(o, at):
    "Train, test and probe"
    folder,began = Path(tempfile.mkdtemp()),time.time()
    try:
        bed,tests = made(o, at, folder/'bed')
        set_seed(o['number'])
        dls = ImageDataLoaders.from_folder(bed, train='train', valid='valid', bs=32, num_workers=0)
        learn = Learner(dls, nets[o['net']](dls.c), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
        with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(o['epochs'], 1e-3 if o['net']=='lite0' else 3e-3)
        acc = {k:accuracy_on(learn, v) for k,v in dict(valid=bed/'valid', **tests).items()}
        p = probe(learn, 'train' if asks_train(o) else None, n=200, objects=boxes(bed) if o['number']>=boxed else None)
    finally: shutil.rmtree(folder, ignore_errors=True)
    f,s = p.flips,p.swaps
    found = {f'hot_{k}_{a:g}':f.loc[a,k] for a in f.index for k in ('carried','follows')}
    found |= {f'{kind}_{k}_{keep:g}':s.loc[(kind,keep),k] for kind,keep in s.index for k in ('carried','follows','same_changes','masked')}
    if p.known is not None:
        known = {f'{k}_{o}':p.known.table[o][k] for k in ('object','around') for o in ('carried','evidence','error')}
        found |= known | dict(hottest_on_object=p.known.hottest)
    by = p.edge_by_class
    return o | acc | dict(classes=dls.c, n=p.n, learned=p.learned, chance=p.chance, cells=min(p.heat.shape[1:]),
        edge=p.energy.hottest['edge'],
        edge_class=by.max() if len(by) else np.nan, centre=p.energy.hottest['centre'], **found, seconds=time.time()-began)

@call_parse
def main(data:str, # Folder of the real data
         networks:int=260, # How many
         work:str='runs/probe_rule', # Images are unpacked here
         out:str=str(Path(__file__).with_suffix('.csv')), # Where the rows go
):
    "Train and probe networks"
    warnings.simplefilter('ignore')
    torch.set_num_threads(1)
    at,out = sources(data, Path(work).resolve()),Path(out)
    done = set(pd.read_csv(out).number) if out.exists() else set()
    for i in range(networks):
        o = drawn(i)
        cannot = (o['source'],o['cue'])==('digits','random blur') # ten degrees of blur look alike on digits
        if i in done or cannot: continue
        r = row(o, at)
        line = pd.DataFrame([dict(plain=float('nan'))|r]).round(4)
        was = [pd.read_csv(out)] if out.exists() else []
        pd.concat([*was,line]).to_csv(out, index=False)
        shown = 'number source cue on net size epochs valid plain aligned flipped learned seconds'.split()
        print({k:round(v, 2) if isinstance(v, float) else v for k,v in r.items() if k in shown}, flush=True)
