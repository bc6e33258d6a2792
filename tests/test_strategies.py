"Every strategy, every loader, every transform: the promises hold for all of them"
import ast, inspect, warnings
import pandas as pd, pytest, torch
from pathlib import Path
from types import SimpleNamespace
from fastai.vision.all import *
from fastai.callback.all import *
from PIL import ImageOps
from proxy_attention.all import *
from proxy_attention.data.digits import bed_learner
from proxy_attention.interpret.probe import KnownObjects, Probe
from proxy_attention.masking.donors import donors
from proxy_attention.masking.fills import fills, noise
from proxy_attention.masking.rules import rules
from proxy_attention.proxy.callback import parted
from proxy_attention.proxy.fits import probe_cycle
from proxy_attention.proxy.successor import IfCarried, treatment
from proxy_attention.proxy.losses import loss_sources
from proxy_attention.proxy.selection import selections
from proxy_attention.proxy.serving import modes
from proxy_attention.experiment.config import changed

root = Path(__file__).parent.parent

pytestmark = [pytest.mark.limit(40), pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')]

# The promises, strategy by strategy

@pytest.fixture(scope='module')
def plain_run(few):
    learn = digits_learner(few)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    return learn.model.state_dict()

rule_args = dict(absolute=dict(threshold=.2), mean_std=dict(k=.5), top_cells=dict(cells=3))
strategies = (
    [dict(select=o) for o in selections]
    + [dict(select=PerClass(o)) for o in ('top_losses','misclassified')]
    + [dict(losses=o) for o in loss_sources]
    + [dict(rule=o, **rule_args.get(o, {})) for o in rules]
    + [dict(fill=o) for o in fills]
    + [dict(mode=o, losses=p) for o in modes for p in loss_sources]
    + [dict(edge=.1), dict(balance=True), dict(min_area=.2, area=.01), dict(grid=3), dict(clear=False, steps=lambda e,n: True),
       dict(steps=Plateau('accuracy')), dict(steps=[1,'p',1]), dict(start=1, every=None), dict(across=2)]
    + [dict(attribution=o) for o in ('Saliency','ScoreCAM')]
    + [dict(target=o) for o in ('label','pred',3)])
name = lambda kw: ','.join(f'{k}={getattr(v, "__name__", v)}' for k,v in kw.items())

class Validated(Callback):
    "What was validated, and how the loader was meanwhile"
    run_train = False
    def before_validate(self): self.at = 0
    def before_batch(self):
        if self.learn.dl is not self.dls.valid: return
        assert 'create_item' not in self.dls.train.__dict__ and 'get_idxs' not in self.dls.train.__dict__
        for x in self.learn.xb[0]:
            assert torch.equal(x.as_subclass(Tensor), image2tensor(Image.open(self.dls.valid_ds.items[self.at]))/255)
            self.at += 1

@pytest.mark.parametrize('kw', strategies, ids=name)
def test_promises_hold(few, plain_run, fingerprint, weights, same, quiet, kw):
    before,kw = fingerprint(few), (dict(start=1) if not {'steps','start'} & set(kw) else {})|kw
    # 1. never served: the looking leaves no trace (beside the originals nothing is replaced, and nothing is drawn)
    idle = quiet(digits_learner(few, cbs=ProxyAttention(**kw|dict(p=0.))), 'fit', 2, 1e-3)
    assert same(weights(idle), plain_run)
    # 2. and 4. served: the data, the loader and validation are as they were
    learn = digits_learner(few, cbs=[ProxyAttention(**kw|dict(p=1.)), Validated()])
    loader,rng = {k:v for k,v in learn.dls.train.__dict__.items() if k!='rng' and not k.endswith('__idxs')}, torch.get_rng_state()
    quiet(learn, 'fit', 2, 1e-3)
    after = {k:v for k,v in learn.dls.train.__dict__.items() if k!='rng' and not k.endswith('__idxs')}
    assert loader.keys()==after.keys() and all(after[k] is loader[k] or after[k]==loader[k] for k in after)
    assert fingerprint(few)==before and learn.validated.at==len(learn.dls.valid_ds) and '_do_epoch_train' not in learn.__dict__
    # 5. nothing silent: every item chosen is in the log, and it is a proxy, or it says why not
    pa = learn.proxy_attention
    if not isinstance(pa.schedule, Plateau):
        assert len(pa.history)==1 and len(pa.log)==pa.history.chosen.sum()>0 and pa.history.known[0]>=64
        assert set(pa.store)==set(pa.log.item[~pa.log.degenerate & (pa.log.area>0)])!=set()
        assert not same(weights(learn), plain_run)
        if not {'rule','max_area'} & set(kw): assert (pa.log.area[pa.log.area>0]<=.41).all()

# Which

def test_running_losses_are_those_of_the_batches(few, quiet):
    "The losses of an epoch without learning are those of an exact pass; whoever was left out is not known, and not chosen"
    learn = digits_learner(few, bs=12, cbs=ProxyAttention(losses='running', share=10, start=1))
    learn.model = nn.Sequential(*(o for o in learn.model if not isinstance(o, nn.BatchNorm2d)))
    for o in learn.model.modules():
        if isinstance(o, nn.BatchNorm2d): o.momentum = 0.
    learn.model.eval()
    learn.model.train = lambda mode=True: learn.model
    quiet(learn, 'fit', 2, 0.)
    interp,exact = learn.proxy_attention.interp,interpret_train(learn)
    assert interp.known.sum()==len(learn.dls.train_ds)//12*12<len(interp.known)
    torch.testing.assert_close(interp.losses[interp.known], exact.losses[interp.known].as_subclass(Tensor), atol=1e-5, rtol=1e-4)
    assert (torch.equal(interp.preds[interp.known], exact.preds[interp.known])
        and torch.equal(interp.targs[interp.known], exact.targs[interp.known]))
    assert (set(learn.proxy_attention.log.item)==set(interp.losses.topk(10).indices.tolist())
        and isinstance(interp, ClassificationInterpretation))

@pytest.mark.parametrize('mode', modes)
def test_running_losses_of_proxies_do_not_count(few, quiet, mode):
    "An item that is always served as a proxy keeps the loss it had before; one that is served beside its original has a new one"
    seen = []
    def select(losses):
        seen.append(losses.clone())
        return range(20)
    learn = digits_learner(few, cbs=ProxyAttention(select=select, losses='running', start=1, p=1., mode=mode, clear=False))
    learn.dls.train.drop_last = False
    quiet(learn, 'fit', 3, 3e-3)
    same = (seen[0]==seen[1])
    assert same[:20].all()==(mode=='replace') and not same[20:].any()

@pytest.mark.parametrize('cbs,words', [(MixUp, 'mixtures of items'), (CutMix, 'mixtures of items')])
def test_running_losses_say_what_they_cannot(few, quiet, cbs, words):
    with pytest.raises(TypeError, match=words): quiet(digits_learner(few, cbs=[ProxyAttention(losses='running', start=1), cbs()]), 'fit', 2)

@pytest.mark.parametrize('workers', [0,2])
def test_running_losses_with_workers_and_other_loaders(few, quiet, workers):
    block = DataBlock((ImageBlock,CategoryBlock), get_items=partial(get_image_files, folders=['train','valid']),
        splitter=GrandparentSplitter(), get_y=parent_label)
    ds = block.datasets(few)
    kw = dict(bs=16, num_workers=workers, after_item=ToTensor, after_batch=IntToFloatTensor)
    for dls in (ds.weighted_dataloaders(np.arange(1, len(ds.train)+1), **kw), ds.partial_dataloaders(40, **kw)):
        learn = quiet(Learner(dls, digits_net(), cbs=ProxyAttention(losses='running', start=1, share=5, p=1.)), 'fit', 3, 1e-3)
        interp = learn.proxy_attention.interp
        known = interp.known.nonzero()[:,0].tolist()
        assert 20<len(known)<len(ds.train) and set(learn.proxy_attention.log.item)<=set(known)
        assert all(interp.targs[i]==ds.train[i][1] for i in known)

def test_wrong_labels_are_found(tmp_path, quiet):
    "A tenth of the labels are wrong, and it is known which: what is shown as suspect is that"
    path,rng = digits(tmp_path/'d', n=800), np.random.default_rng(0)
    files = get_image_files(path/'train').sorted()
    for f in files: # no shortcut here
        img = np.array(Image.open(f))
        img[:6] = img[-6:] = 0
        img[:,:6] = img[:,-6:] = 0
        Image.fromarray(img).save(f)
    wrong = {f:str((int(f.parent.name)+rng.integers(1,10))%10) for f in files if rng.random()<.06}
    set_seed(0)
    dls = DataBlock((ImageBlock,CategoryBlock), get_items=get_image_files,
        get_y=lambda f: wrong.get(f, f.parent.name)).dataloaders(path/'train', bs=16, num_workers=0)
    learn = Learner(dls, digits_net(), metrics=accuracy, cbs=ProxyAttention(steps=[6,'p',1], share=.1))
    with pytest.warns(ProxyWarning, match='such labels are often wrong'): quiet(learn, 'fit_one_cycle', 7, 3e-3)
    pa = learn.proxy_attention
    found = [Path(o) in wrong for o in pa.suspects().file]
    assert np.mean(found)>.8 and sum(found)>.7*sum(f in wrong for f in dls.train_ds.items)
    assert pa.suspects().loss.is_monotonic_decreasing
    assert pa.show_suspects(4).shape==(2,4)

def test_per_class_quotas(few, quiet):
    pa = quiet(digits_learner(few, cbs=ProxyAttention(select=PerClass('top_losses'), share=2, start=1)), 'fit', 2).proxy_attention
    assert (pa.log.targ.value_counts()==2).all() and pa.log.targ.nunique()==10 and 'PerClass(top_losses)' in repr(pa)

# When

def test_plateau(few, quiet):
    "A metric that stands still from the third epoch on"
    standing = AccumMetric(lambda p,t: 0)
    standing = type('Standing', (Metric,), dict(
        reset=lambda s: None,
        accumulate=lambda s,l: setattr(s, 'v', min(l.epoch, 2)),
        value=property(lambda s: s.v),
        name=property(lambda s: 'standing')))()
    learn = digits_learner(few, cbs=ProxyAttention(steps=Plateau('standing', patience=2), share=5))
    learn.metrics = L(standing)
    assert quiet(learn, 'fit', 8, 1e-3).proxy_attention.history.epoch.tolist()==[4,6]
    with pytest.raises(ValueError, match="The recorder has no 'acc'"):
        quiet(digits_learner(few, cbs=ProxyAttention(steps=Plateau('acc'))), 'fit', 3)
    for make in (ProxyAttention, ProxyAttention.late): quiet(digits_learner(few, cbs=make(steps=Plateau())), 'fit_proxy', 3)
    with pytest.raises(ValueError, match='first step of a plateau of .* is unknown'):
        digits_learner(few, cbs=ProxyAttention.shortcut(steps=Plateau())).fit_proxy(3)
    quiet(digits_learner(few, cbs=ProxyAttention.shortcut(steps=Plateau())), 'fit_proxy', 3, probe=1)

def test_a_step_after_the_last_epoch_is_refused(few, quiet):
    with pytest.raises(ValueError, match='comes after the last of 2 epochs'):
        quiet(digits_learner(few, cbs=ProxyAttention(steps=lambda e,n: e==n-1)), 'fit', 2)
    with pytest.raises(ValueError, match='end with a proxy step'): ProxyAttention(steps=[2,'p'])

def test_one_schedule_across_fine_tune(few):
    set_seed(0)
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=32, num_workers=0)
    served = []
    class Served(Callback):
        def before_train(self): served.append('create_item' in self.dls.train.__dict__)
    learn = vision_learner(dls, 'resnet10t', pretrained=False, metrics=accuracy,
        cbs=[ProxyAttention(steps=[2,'p',1,'p',1], across=4, share=20, p=1., clear=False), Served()])
    with learn.no_bar(), learn.no_logging():
        learn.fine_tune(2, freeze_epochs=2)
        pa = learn.proxy_attention
        assert pa.history[['fit','epoch']].values.tolist()==[[1,1],[2,0]] and served==[False,False,True,True]
        learn.fine_tune(2, freeze_epochs=2) # and again from the start
        assert pa.history.fit.tolist()==[1,2,3,4] and served[4:]==[False,False,True,True]
        learn.validate() # a look in between is no fit
        learn.fit(1)
        learn.validate()
        learn.fit(3)
        assert pa.history.fit.tolist()[4:]==[6,6]
        with pytest.raises(ValueError, match='give their sum'): learn.fit(5)

def test_an_interrupted_phase_begins_anew(few, quiet):
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.epoch==1: raise KeyboardInterrupt
    learn = digits_learner(few, cbs=ProxyAttention(steps=[1,'p',3], across=4))
    quiet(learn, 'fit', 1)
    with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit', 2, cbs=Stop())
    quiet(learn, 'fit', 4)
    assert learn.proxy_attention.history.fit.tolist()==[1,3]

# Served: any loader

class Raw:
    "A data set of one's own: no items, no transforms"
    def __init__(self, files, read): self.files,self.read = files,read
    def __len__(self): return len(self.files)
    def __getitem__(self, i): return self.read(self.files[i]), int(self.files[i].parent.name)

reads = dict(
    pil=PILImage.create,
    tensor=lambda f: image2tensor(Image.open(f))/255,
    timage=lambda f: TensorImage(image2tensor(Image.open(f))).float()/255)
raw_files = lambda few,part: get_image_files(few/part).sorted()

def raw_dls(few, read, workers=0):
    sets = [Raw(raw_files(few, o), reads[read]) for o in ('train','valid')]
    if read=='pil':
        return DataLoaders(*(
            TfmdDL(o, bs=16, num_workers=workers, shuffle=i==0, after_item=[Resize(32),ToTensor()], after_batch=[IntToFloatTensor()])
            for i,o in enumerate(sets)))
    return DataLoaders(*(DataLoader(o, bs=16, num_workers=workers, shuffle=i==0) for i,o in enumerate(sets)))

@pytest.mark.parametrize('losses', list(loss_sources))
@pytest.mark.parametrize('workers', [0,2])
@pytest.mark.parametrize('read', list(reads))
def test_raw_data_set(few, quiet, read, workers, losses):
    set_seed(0)
    dls = raw_dls(few, read, workers)
    black = []
    class Count(Callback):
        def before_batch(self):
            if self.training: black.append((self.learn.xb[0].amax((1,2,3))==0).sum().item())
    def all_black(img): return img*0
    learn = Learner(dls, digits_net(), loss_func=CrossEntropyLossFlat(), metrics=accuracy, cbs=[
        Count(),
        ProxyAttention(losses=losses, start=1, share=30, p=1., rule=lambda heat: heat>-1, max_area=1., fill=all_black)])
    quiet(learn, 'fit', 2, 1e-3)
    pa = learn.proxy_attention
    assert len(pa.log)==30 and pa.log.area.min()==1 and pa.log.targ.tolist()==[int(dls.train_ds.files[i].parent.name) for i in pa.log.item]
    n = len(black)//2
    assert sum(black[:n])==0 and 28<=sum(black[n:])<=30 if dls.train.drop_last else sum(black[n:])==30
    learn.proxy_attention.show(3)
    x,y = dls.train_ds[7]
    assert torch.allclose(
        interpret_train(learn).losses[7].as_subclass(Tensor),
        F.cross_entropy(
            learn.model.eval()((image2tensor(x).float()/255 if read=='pil' else x.as_subclass(Tensor))[None]),
            torch.tensor([y])),
        atol=1e-5)

def test_what_cannot_be_served_is_refused(few, quiet):
    def refused(words, dls, **kw):
        with pytest.raises(TypeError, match=words):
            quiet(Learner(dls, digits_net(), loss_func=CrossEntropyLossFlat(), cbs=ProxyAttention(start=1, **kw)), 'fit', 2)
    light = lambda f: image2tensor(Image.open(f))/255*np.random.uniform(.5, 1)
    refused('a different image each time', DataLoaders(*(DataLoader(Raw(raw_files(few, o), light), bs=16) for o in ('train','valid'))))
    ds = Raw(raw_files(few, 'train'), reads['tensor'])
    refused('use fastai', DataLoaders(*[torch.utils.data.DataLoader(ds, batch_size=16)]*2))
    class Stream(torch.utils.data.IterableDataset):
        def __iter__(self): return (ds[i] for i in range(len(ds)))
    refused('a stream without indices of items', DataLoaders(*[DataLoader(Stream(), bs=16)]*2))
    refused('begins with a float', DataLoaders(*[DataLoader([(1.5, 3)]*40, bs=16)]*2))
    refused('begins with a tensor of shape \\(5,\\)', DataLoaders(*[DataLoader([(torch.rand(5), 3)]*40, bs=16)]*2))
    two = DataBlock((ImageBlock,ImageBlock,CategoryBlock), n_inp=2, get_items=get_image_files,
        getters=[noop, noop, parent_label]).dataloaders(few/'train', bs=16, num_workers=0)
    refused('The model has 2 inputs', two)
    both = DataBlock((ImageBlock,CategoryBlock,CategoryBlock), n_inp=1, get_items=get_image_files,
        getters=[noop, parent_label, parent_label]).dataloaders(few/'train', bs=16, num_workers=0)
    refused('one class per image', both)

@pytest.mark.parametrize('mode', modes)
@pytest.mark.parametrize('kind', ['weighted','partial'])
def test_weighted_and_partial_loaders(few, quiet, kind, mode):
    block = DataBlock((ImageBlock,CategoryBlock), get_items=partial(get_image_files, folders=['train','valid']),
        splitter=GrandparentSplitter(), get_y=parent_label)
    ds = block.datasets(few)
    kw = dict(bs=16, num_workers=0, after_item=ToTensor, after_batch=IntToFloatTensor)
    w = np.where(np.arange(len(ds.train))<40, 1., 0.) # only the first 40 are ever drawn
    dls = ds.weighted_dataloaders(w, **kw) if kind=='weighted' else ds.partial_dataloaders(48, **kw)
    n,black = [],[]
    class Count(Callback):
        def before_batch(self):
            if self.training:
                n.append(self.epoch)
                black.append((self.learn.xb[0].amax((1,2,3))==0).sum().item())
    learn = Learner(dls, digits_net(), cbs=[
        Count(),
        ProxyAttention(select='all', start=1, p=1., rule=lambda heat: heat>-1, max_area=1., fill='zero', mode=mode)])
    before = dict(dls.train.__dict__)
    quiet(learn, 'fit', 2, 1e-3)
    second = [b for e,b in zip(n, black) if e==1]
    assert sum(b for e,b in zip(n, black) if e==0)==0
    if kind=='weighted': assert len(second)==(len(ds.train)*(1+(mode=='augment')))//16
    else: assert len(second)==3*(1+(mode=='augment'))
    share = sum(second)/(16*len(second))
    assert share==1 if mode=='replace' else share==.5 if kind=='partial' else .25<share<.75
    assert (dls.train.n==before['n'] and getattr(dls.train, 'partial_n', None)==before.get('partial_n')
        and getattr(dls.train, 'wgts', 0) is before.get('wgts', 0))

def test_a_loader_that_does_not_shuffle_is_told(few, quiet):
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0)
    dls.train.shuffle = False
    with pytest.warns(ProxyWarning, match='does not shuffle'): quiet(Learner(dls, digits_net(), cbs=ProxyAttention(start=1)), 'fit', 2)

def test_draws_come_from_the_loaders_own_seed(few, quiet):
    def drawn(seed, noise):
        learn = digits_learner(few, cbs=ProxyAttention(select='all', start=1, p=.5))
        learn.dls.train.rng = random.Random(seed)
        torch.manual_seed(noise)
        got = []
        class Look(Callback):
            def before_batch(self):
                if self.training and self.iter==0 and 'create_item' in self.dls.train.__dict__:
                    got.append(self.dls.train.create_item.proxies.drawn.tolist())
        learn.add_cb(Look())
        quiet(learn, 'fit', 3, 1e-3)
        return got
    a,b,c = drawn(1, 1), drawn(1, 2), drawn(2, 1)
    assert a==b!=c and a[0]!=a[1]

# Geometry: the mask lands where the model looked, in the pixels that are served

def marked(d, size, mode='RGB', n=10):
    "Grey images with a bright square in one of four places; the answer is the place"
    rng,(h,w) = np.random.default_rng(0), size
    s = min(h, w)//3
    for c in range(4):
        (d/str(c)).mkdir(parents=True)
        for i in range(n):
            y,x = (h//8, h-h//8-s)[c//2], (w//8, w-w//8-s)[c%2]
            a = rng.integers(90, 110, (h,w,3), dtype=np.uint8)
            a[y:y+s, x:x+s] = 255
            Image.fromarray(a).convert(mode).save(d/str(c)/f'{c}_{i}.png')
    return d

norm = Normalize.from_stats([.5]*3, [.5]*3)
class Turn(RandTransform):
    "A turn by a right angle, drawn for each image"
    order = 1
    def encodes(self, x:Image.Image): return x.transpose(random.choice([Image.ROTATE_90,Image.ROTATE_180,Image.ROTATE_270]))
transforms = dict(
    crop=dict(item_tfms=Resize(64)),
    pad=dict(item_tfms=Resize(64, method='pad', pad_mode='border')),
    squish=dict(item_tfms=Resize((48,64), method='squish')),
    rrc=dict(item_tfms=RandomResizedCrop(64, min_scale=.6)),
    rrc_gpu=dict(item_tfms=Resize(80, method='squish'), batch_tfms=[RandomResizedCropGPU(64, min_scale=.7)]),
    presizing=dict(item_tfms=Resize(96), batch_tfms=aug_transforms(size=64, min_scale=.75, max_lighting=0)),
    flips=dict(item_tfms=[Resize((64,80), method='squish'), FlipItem(.5)]),
    dihedral=dict(item_tfms=[Resize(64, method='squish'), DihedralItem(1.)]),
    turns=dict(item_tfms=[Resize(64, method='squish'), Turn(p=1.)]),
    rotate=dict(item_tfms=Resize(64), batch_tfms=[Rotate(40, p=1.), norm]),
    warp=dict(item_tfms=Resize(64), batch_tfms=[Warp(.3, p=1.)]),
    zoom=dict(item_tfms=Resize(64), batch_tfms=[Zoom(max_zoom=1.4, p=1.)]),
    all=dict(item_tfms=Resize(72), batch_tfms=[
        *aug_transforms(size=64, do_flip=True, flip_vert=True, max_rotate=30, max_warp=.2, max_lighting=0),
        norm]))

def served_pixels(dls, fill, net=None, model_in=3):
    "Batches of an epoch without and of one with proxies, in [0,1], channel last; heat is where the image is brightest"
    brightest = lambda xb,yb: F.adaptive_avg_pool2d(xb.amin(1, keepdim=True), (24,24))[:,0]
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(model_in,4)), loss_func=CrossEntropyLossFlat(),
                    cbs=ProxyAttention(select='all', attribution=brightest, area=.15, fill=fill, start=1, every=None, p=1.))
    x = {0:[],1:[]}
    class Served(Callback):
        def before_batch(self):
            if self.training: x[self.epoch].append(self.learn.xb[0].as_subclass(Tensor).clone())
    learn.add_cb(Served())
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.)
    lo,hi = (-1,1) if any(isinstance(o, Normalize) for o in getattr(dls.train.after_batch, 'fs', [])) else (0,1)
    return [(torch.cat(x[i])-lo)/(hi-lo) for i in (0,1)]

def red(img): return torch.tensor([1.,0,0])[:,None,None].expand_as(img)*(255 if not img.is_floating_point() or img.max()>1 else 1)
def white(x): return (x.amin(1)>.85).float().mean((1,2))
def redness(x): return ((x[:,0]>.7)&(x[:,1:].amax(1)<.3)).float().mean((1,2))

@pytest.mark.parametrize('size', [(60,90),(91,47)], ids=str)
@pytest.mark.parametrize('how', list(transforms))
def test_the_mask_covers_the_mark(tmp_path, how, size):
    "Red is put where the heat is. In the pixels that training is served, white must be gone, and red must be there"
    set_seed(0)
    x0,x1 = served_pixels(ImageFolder(marked(tmp_path/'m', size)).dataloaders(bs=8, num_workers=0, **transforms[how]), red)
    assert white(x0).mean()>.02 and redness(x0).max()==0
    assert white(x1).max()<.002 and redness(x1).mean()>.02

def test_the_mask_covers_the_mark_in_grey_images(tmp_path):
    set_seed(0)
    dls = DataBlock((ImageBlock(PILImageBW),CategoryBlock), get_items=get_image_files, get_y=parent_label,
        item_tfms=Resize(64), batch_tfms=Rotate(30, p=1.)).dataloaders(marked(tmp_path/'m', (60,90), 'L'), bs=8, num_workers=0)
    x0,x1 = served_pixels(dls, 'zero', model_in=1)
    assert white(x0).mean()>.02 and (x0<.1).float().mean()==0 and white(x1).max()<.002 and (x1<.1).float().mean()>.02

@pytest.mark.parametrize('kind', ['TensorImage','float'])
def test_the_mask_covers_the_mark_in_tensors(tmp_path, kind):
    set_seed(0)
    read = lambda f: (TensorImage(image2tensor(Image.open(f))) if kind=='TensorImage'
        else TensorImage(image2tensor(Image.open(f)).float()/255))
    block = TransformBlock(type_tfms=read, batch_tfms=IntToFloatTensor if kind=='TensorImage' else None)
    dls = DataBlock((block,CategoryBlock), get_items=get_image_files, get_y=parent_label,
        batch_tfms=aug_transforms(size=64, max_rotate=25, max_lighting=0)).dataloaders(marked(tmp_path/'m', (60,90)), bs=8, num_workers=0)
    x0,x1 = served_pixels(dls, red)
    assert white(x0).mean()>.02 and redness(x0).max()==0 and white(x1).max()<.002 and redness(x1).mean()>.02

def test_interpretation_of_a_model_of_two_images(few, quiet):
    "`ProxyAttention` is for one image; looking at the losses is not"
    dls = DataBlock((ImageBlock,ImageBlock,CategoryBlock), n_inp=2, get_items=get_image_files,
        getters=[noop, noop, parent_label]).dataloaders(few/'train', bs=16, num_workers=0)
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.net = digits_net()
        def forward(self, a, b): return self.net(a)+self.net(b)
    assert len(interpret_train(quiet(Learner(dls, Two()), 'fit', 1)).losses)==len(dls.train_ds)

# Masks only where the probe says so

def found(place=0., rest=0., border=0., look=0., edge=.1, cells=8, known=None, **curve):
    "A probe of 60 images of two classes, of which the second has its hottest place at the edge in a share `edge`"
    heat = torch.zeros(60, cells, cells)
    heat[:,cells//2,cells//2] = 1
    for i in range(1, round(60*edge), 2): heat[i] = heat[i].roll((cells//2,)*2, (0,1))
    areas = {float(k[1:])/100:v for k,v in curve.items()} or {.1:place}
    flips = pd.DataFrame(dict(carried=list(areas.values())), index=list(areas))
    at = pd.MultiIndex.from_tuples([('rest',.3),('edge',.81),('look',1.)], names=['kind','keep'])
    swaps = pd.DataFrame(dict(carried=[rest,border,look]), index=at)
    return Probe(heat, torch.arange(60)%2, flips, ['a','b'], targs=torch.arange(60)%2, swaps=swaps, known=known)

def answers(monkeypatch, found):
    import proxy_attention.proxy.successor as c
    monkeypatch.setattr(c, 'probe', lambda learn, items, n, model, objects: found)

@pytest.mark.parametrize('carried,steps', [(.9,[0]), (.5,[0]), (.49,[]), (float('nan'),[])])
def test_probed_masks_where_a_small_place_carries_the_predictions(few, quiet, monkeypatch, carried, steps):
    answers(monkeypatch, found(carried))
    learn = digits_learner(few, cbs=ProxyAttention.probed())
    quiet(learn, 'fit_proxy', 3, 1e-3)
    assert learn.proxy_attention.history.epoch.tolist()==steps

@pytest.mark.parametrize('carried,edge,cells,masks', [(.3,1.,8,True), (.3,.7,8,False), (.3,1.,3,False), (.1,1.,8,False)])
def test_a_place_at_the_edge_has_to_carry_less(carried, edge, cells, masks):
    assert treatment(found(carried, edge=edge, cells=cells), Masker(area=.1))==(dict(area=.1) if masks else False)

def test_the_kind_that_is_leaned_on_most_is_treated():
    by = dict(place=found(place=.9, rest=.2), rest=found(place=.55, rest=.6, look=.3), edge=found(border=.9), look=found(look=.9))
    m = Masker(area=.1)
    for k,p in by.items():
        rule = dict(place='area', rest='rest', edge='border', look='everything')[k]
        assert p.leans[0]==k and m.having(**parted(treatment(p, m))[0]).rule is rules[rule]
    assert by['rest'].leans==['rest','place'] and treatment(by['rest'], m, ['place'])==dict(area=.1)
    assert treatment(by['look'], m, ['place','rest']) is False and found().leans==[]

def test_a_known_object_settles_what_is_leaned_on():
    def known(hottest, around):
        return KnownObjects(10, pd.DataFrame(dict(evidence=[.3,around], error=.01), index=['object','around']), .5, hottest, .2)
    assert found(place=.9, known=known(.9,0.)).leans==[] and found(place=.9, known=known(.1,0.)).leans==['place']
    assert found(place=.9, rest=0., known=known(.9,.7)).leans==['rest']
    assert found(rest=.9, known=known(.9,.09)).leans==[], 'two standard errors below it is too little'

@pytest.mark.parametrize('carried,rule,donor,balance', [(dict(place=.9),'area','previous',False), (dict(rest=.9),'rest','balanced',True),
                                                        (dict(look=.9),'everything','balanced',False)])
def test_what_is_served_is_what_the_probe_says(few, quiet, monkeypatch, carried, rule, donor, balance):
    answers(monkeypatch, found(**carried))
    learn = digits_learner(few, cbs=ProxyAttention.probed(steps=IfCarried(kinds=['place','rest','edge','look'])))
    quiet(learn, 'fit_proxy', 3, 1e-3)
    pa = learn.proxy_attention
    p = pa.proxies()
    assert (pa.masker.rule, p.donor, p.balance)==(rules[rule], donors[donor], balance) and len(pa.served)
    assert (pa.served.area.mean()>.3)==(rule!='area')

@pytest.mark.filterwarnings('always::proxy_attention.core.ProxyWarning')
@pytest.mark.parametrize('kw,area', [({}, .2), (dict(max_area=.1), .1), (dict(rule='mean_std', k=1.), None)])
def test_probed_masks_the_smallest_area_that_carries_nearly_the_most(few, quiet, monkeypatch, kw, area):
    answers(monkeypatch, found(_2=.1, _5=.2, _10=.6, _20=.78, _30=.8))
    learn = digits_learner(few, cbs=ProxyAttention.probed(**kw))
    quiet(learn, 'fit_proxy', 3, 1e-3)
    pa = learn.proxy_attention
    assert len(pa.history)==1 and (area is None or abs(pa.history.area[0]-area)<.005) and pa.masker.kwargs.get('area')==area
    if area!=.2: return
    answers(monkeypatch, found(_10=.1))
    with pytest.warns(ProxyWarning, match='nothing is masked'): quiet(learn, 'fit_proxy', 3, 1e-3)
    assert pa.masker.kwargs['area']==.1 # a new fit begins with its own settings

def test_probed_takes_no_area(few):
    with pytest.raises(TypeError, match='leave `area=0.3` out'): ProxyAttention.probed(area=.3)
    assert ProxyAttention.probed(area=.3, steps=[1,'p',1]).masker.kwargs['area']==.3

def test_a_schedule_that_says_how(few, quiet):
    "Arguments of the rule hold for their step alone, and through a checkpoint"
    plans = [True, dict(area=.2), True, dict(area=.3), False]
    learn = digits_learner(few, cbs=ProxyAttention(steps=lambda e,n: plans[e], fill='noise'))
    quiet(learn, 'fit', 5, 1e-3)
    pa = learn.proxy_attention
    assert pa.history.area.round(2).tolist()==[.1,.2,.1,.3] and pa.state_dict()['how']==[dict(area=.3)]
    with pytest.raises(TypeError, match="did you mean 'area'"):
        quiet(digits_learner(few, cbs=ProxyAttention(steps=lambda e,n: e==0 and dict(aera=.2))), 'fit', 2)
    with pytest.raises(ValueError, match='area=0.9 is more than max_area'):
        quiet(digits_learner(few, cbs=ProxyAttention(steps=lambda e,n: e==0 and dict(area=.9))), 'fit', 2)

@pytest.mark.filterwarnings('always::proxy_attention.core.ProxyWarning')
def test_probed_without_a_shortcut_is_the_plain_fit(tmp_path, weights, same, quiet):
    bed,ends = no_shortcut(tmp_path/'bed', n_train=120, n_test=20),[]
    for cb in (None, ProxyAttention.probed()):
        learn = bed_learner(bed, bs=16, cbs=cb)
        if cb is None: quiet(learn, 'fit', 3, cbs=probe_cycle(learn, 3, lr_max=1e-3))
        else:
            with pytest.warns(ProxyWarning, match='nothing yet|depend on nothing'): quiet(learn, 'fit_proxy', 3, 1e-3)
        ends.append(weights(learn))
    assert same(*ends)

def test_a_share_that_would_change_nothing(few):
    with pytest.raises(TypeError, match='share=0.05 would change nothing'): ProxyAttention(select='all', share=.05)
    assert ProxyAttention(select='all').args['share'] is None

@pytest.mark.filterwarnings('always::proxy_attention.core.ProxyWarning')
@pytest.mark.parametrize('select,share,warns', [('all',None,True), ('top_losses',.01,False), ('top_losses',None,False)])
def test_memory_is_that_of_the_items_chosen(few, quiet, monkeypatch, select, share, warns):
    "80 maps of 3,000 × 3,000 cells take 1.4 GB, a fifth of them 0.3"
    monkeypatch.setattr('proxy_attention.attribution.heatmap.HeatmapStore.update', lambda *args: 0)
    big = lambda xb, yb: torch.zeros(1).expand(len(xb), 3000, 3000)
    learn = digits_learner(few, cbs=ProxyAttention(select=select, share=share, attribution=big, steps=lambda e,n: False))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        quiet(learn, 'fit', 1, 0.)
    assert any('need 1 GB' in str(o.message) for o in said)==warns

def test_the_usual_value_can_be_asked_for(few):
    "`area=.1` is an area like any other: with a rule that takes none it is refused, as `area=.2` is"
    for area in (.1,.2):
        with pytest.raises(TypeError, match='area'): ProxyAttention(rule='mean_std', area=area)
    with pytest.raises(ValueError, match='Give either'): ProxyAttention(steps=[1,'p',1], start=.3)
    assert ProxyAttention(rule='mean_std', k=1.).masker.kwargs==dict(k=1.)

class Twin:
    "What `Plateau` does, by somebody else: a step when the loss has not fallen for an epoch"
    def possible(self, n_epoch): return list(range(1, n_epoch-1))
    def __call__(self, epoch, n_epoch, values=None): return values is not None and epoch in self.possible(n_epoch)

@pytest.mark.parametrize('how,args,kw', [
    ('fit',(4,),{}), ('fit_one_cycle',(4,),{}), ('fit_proxy',(4,),dict(probe=1)), ('fine_tune',(3,),{})])
def test_a_twin_of_plateau_works_everywhere(few, quiet, how, args, kw):
    pa = ProxyAttention(steps=Twin(), share=.5, **(dict(across=4) if how=='fine_tune' else {}))
    quiet(digits_learner(few, cbs=pa), how, *args, **kw)
    assert len(pa.history)==2

def test_nobody_asks_for_the_class_of_a_schedule():
    for f in (root/'proxy_attention').rglob('*.py'):
        for o in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
            if isinstance(o, ast.Call) and getattr(o.func, 'id', '')=='isinstance': assert 'Plateau' not in ast.dump(o.args[1]), f

def test_the_callback_is_thin():
    "Arguments, and events of a line or a few"
    src = inspect.getsource(ProxyAttention)
    assert len(src.splitlines())<=150
    from proxy_attention.proxy import step
    assert not inspect.isclass(step.step) and len(inspect.getsource(step.step).splitlines())<40

def test_a_recipe_is_one_object(few, quiet):
    "A new one is known to the class, the table, the command line, the arms, and `fit_proxy` at once"
    from proxy_attention.proxy.recipes import Recipe, recipe_table
    from proxy_attention.experiment.arms import arms
    from proxy_attention.experiment.config import flags
    mine = Recipe('mine', 'To try it out', dict(select='all', every=None, start=1, fill='noise', p=1.), cost='nothing', fails='always')
    try:
        assert '| `ProxyAttention.mine()` | To try it out | nothing | always |' in recipe_table()
        assert 'To try it out' in mine._repr_markdown_() and ProxyAttention.mine.__doc__=='To try it out. always'
        learn = digits_learner(few, cbs=ProxyAttention.mine(area=.2))
        quiet(learn, 'fit_one_cycle', 3, 1e-3)
        assert len(learn.proxy_attention.store)==len(learn.dls.train_ds) and learn.proxy_attention.masker.kwargs['area']==.2
        learn = digits_learner(few)
        with learn.no_bar(), learn.no_logging(): arms['mine'](learn, 2, 1e-3)
        assert learn.proxy_attention.args['fill']=='noise'
        recipe = next(o for o in flags() if o.name=='recipe')
        assert 'mine' in recipe.annotation.__metadata__[0]
    finally:
        recipes.pop('mine')
        del ProxyAttention.mine

@pytest.mark.parametrize('name', ['shortcut','late','probed','keep','vitamin','thesis','masktune'])
def test_recipes_can_be_completed(name):
    "What `?` and the tab key show is what can be given, with the recipe's own values"
    params = inspect.signature(getattr(ProxyAttention, name)).parameters
    usual = recipes[name].settings
    assert {'select','p','fill','attribution'}<=set(params) and ('area' in params)==(name!='probed')
    for k,v in usual.items(): assert params[k].default==v or params[k].default is v
    for k in ('select','p'): assert getattr(ProxyAttention, name)().args[k]==params[k].default

@pytest.mark.parametrize('area,most', [(.1,.4), (.3,.4), (.4,.4), (.15,.2)])
def test_both_places_are_within_the_largest_area(area, most):
    "By itself, without a callback; and never more than `max_area` (it was 68 % once)"
    g = torch.Generator().manual_seed(0)
    m = Masker(fill='swap_both', area=area, max_area=most)
    for _ in range(20):
        img,other,heat,theirs = torch.rand(3,40,40, generator=g),torch.rand(3,40,40, generator=g),*torch.rand(2,5,5, generator=g)
        new = m(img, heat, other, other_heat=theirs)
        changed = (new!=img).any(0)
        assert changed.float().mean()<=most+1/1600
        alone = (m(img, heat, other)!=img).any(0)
        if 2*area<=most: assert (changed&alone).sum()==alone.sum() and changed.sum()>alone.sum()

def test_a_fill_of_ones_own_says_where(few, quiet):
    "Where only the donor was looked at"
    def theirs_alone(other): return other
    theirs_alone.where = lambda own, theirs: theirs
    img,other,heat,theirs = torch.rand(3,20,20),torch.rand(3,20,20),*torch.rand(2,4,4)
    m = Masker(fill=theirs_alone, area=.1)
    assert torch.equal(m(img, heat, other, other_heat=theirs), Masker(area=.1)(img, theirs, other))
    pa = ProxyAttention(select='all', p=1., start=1, fill=theirs_alone)
    quiet(digits_learner(few, cbs=pa), 'fit', 2, 1e-3)
    served = pa.served
    assert served.area.between(.05,.15).all() and len(served)>40

def test_a_recipe_that_is_given_as_a_selection_is_named():
    with pytest.raises(ValueError, match=r"'shortcut' is a recipe and no selection: write `ProxyAttention.shortcut\(\)`"):
        ProxyAttention('shortcut')
