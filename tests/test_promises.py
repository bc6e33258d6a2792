"The promises of the design, one test or more each; each fails when the code is broken on purpose"
import random
import pytest, torch
from fastai.vision.all import *
from PIL import UnidentifiedImageError
from proxy_attention.all import *
from proxy_attention.core import new_run, refuse_inside
from proxy_attention.data.loaders import input_size, train_items, whole_dl
from proxy_attention.attribution.heatmap import resize_heat
from proxy_attention.attribution.methods import heat_of
from proxy_attention.masking.rules import centre
from proxy_attention.proxy.fits import probe_cycle
from proxy_attention.proxy.serving import modes

nothing = lambda losses: []
pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')

# 1. Bit-exact when idle

@pytest.mark.parametrize('workers', [0,2])
def test_idle_is_bit_exact(path, quiet, weights, same, workers):
    def run(cbs):
        set_seed(7)
        dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=32, num_workers=workers,
            item_tfms=RandomResizedCrop(32, min_scale=.7), batch_tfms=aug_transforms())
        learn = Learner(dls, nn.Sequential(*digits_net()[:-1], nn.Dropout(.3), nn.Linear(64,10)), metrics=accuracy, cbs=cbs)
        quiet(learn, 'fit_one_cycle', 3, 3e-3)
        return weights(learn), learn.recorder.values, (random.random(), np.random.rand(), torch.rand(1).item())
    plain,idle = run(None), run(ProxyAttention(select=nothing, start=1))
    assert same(plain[0], idle[0])
    assert plain[1:]==idle[1:]

def test_never_served_is_bit_exact(path, quiet, weights, same):
    "All the work of a step, and p=0: the looking itself leaves no trace"
    a,b = digits_learner(path), digits_learner(path, cbs=ProxyAttention.shortcut(p=0.))
    sched = probe_cycle(a, 3, lr_max=3e-3)
    quiet(a, 'fit', 3, cbs=sched)
    quiet(b, 'fit_proxy', 3, 3e-3)
    assert len(b.proxy_attention.store)==len(b.dls.train_ds)
    assert same(weights(a), weights(b))

def test_served_is_not_the_same(path, quiet, weights, same):
    a,b = digits_learner(path), digits_learner(path, cbs=ProxyAttention(start=1))
    quiet(a, 'fit_one_cycle', 3, 3e-3)
    quiet(b, 'fit_one_cycle', 3, 3e-3)
    assert not same(weights(a), weights(b))

def test_repeats_bit_for_bit(path, quiet, weights, same):
    run = lambda: weights(quiet(digits_learner(path, cbs=ProxyAttention(start=1)), 'fit_one_cycle', 3, 3e-3))
    assert same(run(), run())

# 2. Nothing of yours is touched

def test_dataset_is_not_touched(path, quiet, fingerprint, tmp_path):
    before = fingerprint(path)
    learn = digits_learner(path, cbs=ProxyAttention(start=1, folder=tmp_path/'run', save_images=True))
    quiet(learn, 'fit_one_cycle', 3, 3e-3)
    learn.proxy_attention.show()
    assert fingerprint(path)==before
    assert len(list((tmp_path/'run').rglob('*.png')))==learn.proxy_attention.served['item'].nunique()>0

@pytest.mark.parametrize('below', ['', 'out', 'train/out', 'train/0', 'valid/0/deeper'])
def test_refuses_to_write_among_the_images(path, quiet, below):
    learn = digits_learner(path, cbs=ProxyAttention(start=1, folder=path/below))
    with pytest.raises(ValueError, match='nothing is ever written there'): quiet(learn, 'fit', 2)
    assert not (path/below/'heat.npz').exists()

def test_refuses_the_folder_of_another_run(path, quiet, tmp_path):
    fit = lambda: quiet(digits_learner(path, cbs=ProxyAttention(start=1, folder=tmp_path/'run')), 'fit', 2)
    fit()
    with pytest.raises(FileExistsError, match='contains the proxies of another run'): fit()

def rng_state(): return torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()

class Look(Callback):
    "What an outsider sees before and after the proxy step"
    def __init__(self): self.seen = []
    def state(self):
        l = self.learn
        rec = l.recorder
        return dict(
            modes=[m.training for m in l.model.modules()],
            grads=[None if p.grad is None else p.grad.clone() for p in l.model.parameters()],
            hooks=sum(len(m._forward_hooks)+len(m._backward_hooks)+len(m._forward_pre_hooks) for m in l.model.modules()),
            rng=rng_state(),
            cbs=[type(o) for o in l.cbs],
            hypers=[dict(h) for h in l.opt.hypers],
            loop=[l.epoch, l.n_iter, l.iter, l.pct_train, l.train_iter, l.training],
            loss=l.loss, dl=l.dl, logger=l.logger,
            records=[list(map(float, rec.losses)), list(rec.values), list(rec.lrs)],
            loader={k:v for k,v in l.dls.train.__dict__.items() if k!='rng'},
            shuffle=l.dls.train.rng.getstate(),
            requires=[p.requires_grad for p in l.model.parameters()],
            mbar=getattr(getattr(l, 'progress', None), 'mbar', None))
class Before(Look):
    order = ProxyAttention.order-1
    def after_epoch(self): self.seen.append(self.state())
class After(Look):
    order = ProxyAttention.order+1
    def after_epoch(self): self.seen.append(self.state())

@pytest.mark.parametrize('bar', [True,False])
@pytest.mark.parametrize('how', ['LayerCAM','Saliency'])
def test_a_step_leaves_everything_as_it_was(path, how, bar):
    before,after = Before(), After()
    learn = digits_learner(path, cbs=[before, after, ProxyAttention(start=1, attribution=how), GradientAccumulation(80)])
    learn.model[2][1].eval() # one module has a mode of its own
    if bar: learn.fit_one_cycle(3, 3e-3)
    else:
        with learn.no_bar(): learn.fit_one_cycle(3, 3e-3)
    assert len(learn.proxy_attention.history)==2
    seen_b,seen_a = before.seen[:3], after.seen[:3]
    assert any(g is not None and g.abs().sum()>0 for g in seen_b[0]['grads']) # half-summed gradients cross the epoch
    for a,b in zip(seen_b, seen_a):
        for x,y in zip(a.pop('grads'), b.pop('grads')): assert (x is None and y is None) or torch.equal(x, y)
        for k in a: assert a[k] is b[k] if k in ('dl','mbar') else a[k]==b[k], k

def test_modes_of_modules_and_loop_survive_a_look_outside_a_fit(path):
    learn = digits_learner(path)
    learn.model.train()
    learn.model[2][1].eval()
    modes = [m.training for m in learn.model.modules()]
    interpret_train(learn)
    assert [m.training for m in learn.model.modules()]==modes
    learn.add_cb(Callback(after_pred=lambda self: 1/0))
    with pytest.raises(ZeroDivisionError), learn.no_bar(): interpret_train(learn)
    assert [m.training for m in learn.model.modules()]==modes

def test_a_look_outside_a_fit_uses_up_no_random_numbers(path):
    learn = digits_learner(path)
    before = rng_state()
    looks = (interpret_train, ProxyInterpretation.from_learner, lambda o: input_size(o.dls), lambda o: whole_dl(o.dls, train_items(o.dls)))
    for look in looks:
        with learn.no_bar(): look(learn)
        assert rng_state()==before

@pytest.mark.parametrize('mode', ['replace','augment'])
def test_loader_is_put_back(path, quiet, mode):
    learn = digits_learner(path, cbs=ProxyAttention(start=1, mode=mode, p=1.))
    before = {k:v for k,v in learn.dls.train.__dict__.items() if k!='rng'}
    quiet(learn, 'fit_one_cycle', 3, 3e-3)
    after = {k:v for k,v in learn.dls.train.__dict__.items() if k!='rng' and not k.endswith('__idxs')}
    assert {k:v for k,v in before.items() if not k.endswith('__idxs')}.keys() == after.keys()
    assert all(after[k] is before[k] or after[k]==before[k] for k in after)
    assert '_do_epoch_train' not in learn.__dict__

# 3. The mask lands where the model looked

def mark_images(d, n=12, size=(60,90)):
    "Grey images with a bright square in one of four places; the answer is the place"
    rng = np.random.default_rng(0)
    for c,(y,x) in enumerate([(4,6),(4,66),(38,6),(38,66)]):
        (d/str(c)).mkdir(parents=True)
        for i in range(n):
            a = rng.integers(90, 110, (*size,3), dtype=np.uint8)
            a[y:y+18, x:x+18] = 255
            Image.fromarray(a).save(d/str(c)/f'{c}_{i}.png')
    return d

@pytest.mark.parametrize('tfms', [
    dict(item_tfms=Resize(64)),
    dict(item_tfms=Resize(64, method='pad', pad_mode='zeros')),
    dict(item_tfms=Resize((48,64), method='squish')),
    dict(item_tfms=RandomResizedCrop(64, min_scale=.6)),
    dict(item_tfms=Resize(96), batch_tfms=aug_transforms(size=64, max_rotate=25, max_warp=.2, max_lighting=0)),
    dict(item_tfms=Resize(64, method='squish'),
         batch_tfms=[RandomResizedCropGPU(48, min_scale=.7), Normalize.from_stats([.5]*3, [.5]*3)])],
    ids=lambda o: str(list(o.values())[0])[:40])
def test_mask_covers_the_planted_square_in_the_pixels_served(tmp_path, tfms):
    "Red is put where the heat is. In the pixels that training is served, white must be gone, and red must be there"
    folder = ImageFolder(mark_images(tmp_path/'marks'))
    set_seed(0)
    dls = folder.dataloaders(bs=8, num_workers=0, **tfms)
    brightest = lambda xb,yb: F.adaptive_avg_pool2d(xb.min(1, keepdim=True)[0], (20,30))[:,0]
    def red(img): return torch.tensor([255.,0,0])[:,None,None].expand_as(img)
    learn = Learner(dls, nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3,4)),
                    cbs=ProxyAttention(select='all', attribution=brightest, area=.14, fill=red, start=1, every=None, p=1.))
    class Served(Callback):
        def before_fit(self): self.x = {0:[],1:[]}
        def before_batch(self):
            if self.training: self.x[min(self.epoch,1)].append(self.learn.xb[0].clone())
    served = Served()
    learn.add_cb(served)
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 0.)
    lo,hi = (-1,1) if any(isinstance(o, Normalize) for o in dls.train.after_batch.fs) else (0,1)
    norm = lambda xs: (torch.cat([x.as_subclass(Tensor) for x in xs])-lo)/(hi-lo)
    x0,x1 = norm(served.x[0]), norm(served.x[1])
    white = lambda x: (x.min(1)[0]>.85).float().mean((1,2))
    redness = lambda x: ((x[:,0]>.7)&(x[:,1]<.3)&(x[:,2]<.3)).float().mean((1,2))
    assert white(x0).mean()>.02 and redness(x0).max()==0
    assert white(x1).max()<.002, white(x1)
    assert redness(x1).mean()>.02

def test_heat_is_over_the_whole_image(tmp_path):
    "A centre crop would cut these squares; the heat must still be where they are in the file"
    d = mark_images(tmp_path/'marks')
    folder = ImageFolder(d)
    dls = folder.dataloaders(bs=8, num_workers=0, item_tfms=Resize(32))
    brightest = lambda xb,yb: xb.min(1)[0]
    heat,bad = heat_of(brightest, whole_dl(dls, dls.train_ds.items))
    centre = lambda a: np.argwhere(a).mean(0)
    for h,f in zip(heat, folder.df.file[folder.df.part=='train']):
        img = np.asarray(Image.open(f).convert('L'))>200
        assert np.abs(centre(resize_heat(h, img.shape).numpy()>.7)-centre(img)).max() < 90/32 # less than a cell of the heat

# 4. One split

class SameAsFile(Callback):
    "Every image that is validated is bit-equal to its file"
    run_train = False
    def before_validate(self): self.at = 0
    def before_batch(self):
        if self.learn.dl is not self.dls.valid: return # the pass over the training items
        for x in self.learn.xb[0]:
            assert torch.equal(x.as_subclass(Tensor), image2tensor(Image.open(self.dls.valid_ds.items[self.at]))/255)
            self.at += 1
    def after_fit(self): self.checked = self.at

def test_no_proxy_in_validation_and_one_split(path, quiet):
    learn = digits_learner(path, cbs=[ProxyAttention(select='all', start=1, p=1., fill='zero'), SameAsFile()])
    items = [list(learn.dls.train_ds.items), list(learn.dls.valid_ds.items)]
    quiet(learn, 'fit', 3, 1e-3)
    assert learn.same_as_file.checked==len(items[1])
    assert learn.proxy_attention.history.made.sum()>0
    assert items==[list(learn.dls.train_ds.items), list(learn.dls.valid_ds.items)]
    assert not set(items[0]) & set(items[1])
    assert set(learn.proxy_attention.log.file) <= set(map(str, items[0]))

# 5. No silent nothing

def warned(f, words):
    with pytest.warns(ProxyWarning, match=words): f()

def test_empty_selection_is_said(path, quiet):
    warned(lambda: quiet(digits_learner(path, cbs=ProxyAttention(select=nothing, start=1)), 'fit', 2),
        'made no proxy image: the selection is empty')

def test_flat_and_nan_heat_is_counted(path, quiet):
    def half_nan(xb, yb):
        heat = torch.rand(len(xb), 4, 4)
        heat[::2] = torch.nan
        return heat
    learn = digits_learner(path, cbs=ProxyAttention(select='all', attribution=half_nan, start=1))
    warned(lambda: quiet(learn, 'fit', 2), 'flat or not finite.; these items stay unmasked')
    pa = learn.proxy_attention
    assert pa.history.degenerate.sum()+pa.history.made.sum()==len(learn.dls.train_ds)
    assert pa.log.degenerate.sum()==pa.history.degenerate.sum()>0
    assert not set(pa.log.item[pa.log.degenerate]) & set(pa.store)
    warned(lambda: quiet(digits_learner(path, cbs=ProxyAttention(attribution=lambda xb,yb: torch.ones(len(xb),4,4), start=1)), 'fit', 2),
        'every heatmap is flat')

def test_a_rule_that_masks_nothing_is_said(path, quiet):
    warned(lambda: quiet(digits_learner(path, cbs=ProxyAttention(rule='absolute', threshold=2., start=1)), 'fit', 2),
        'the rule masks no pixel')

def test_no_step_at_all_is_said(path, quiet):
    warned(lambda: quiet(digits_learner(path, cbs=ProxyAttention()), 'fit', 1), 'No epoch of this fit ends with a proxy step')

def test_nan_losses_are_said(path, quiet):
    class Bad(nn.Module):
        def forward(self, x): return x*torch.where(x.mean((1,2,3), keepdim=True)>.15, torch.nan, 1.) if not self.training else x
    learn = digits_learner(path, cbs=ProxyAttention(start=1))
    learn.model = nn.Sequential(Bad(), *learn.model)
    learn.create_opt()
    warned(lambda: quiet(learn, 'fit', 2), 'training losses are NaN or infinite')

def test_no_layer_is_an_error_before_the_first_batch(path, quiet, weights, same):
    learn = digits_learner(path, cbs=ProxyAttention(start=1))
    learn.model = nn.Sequential(nn.Flatten(), nn.Linear(3*32*32, 10))
    before = weights(learn)
    with pytest.raises(ValueError, match='No layer of this Sequential'): quiet(learn, 'fit', 2)
    assert same(before, weights(learn))

def test_unreadable_file_is_an_error_with_its_name(path, quiet, tmp_path):
    shutil.copytree(path, tmp_path/'d')
    bad = sorted((tmp_path/'d'/'train'/'3').iterdir())[0]
    bad.write_bytes(b'no image')
    with pytest.raises(UnidentifiedImageError, match=bad.name): quiet(digits_learner(tmp_path/'d', cbs=ProxyAttention(start=1)), 'fit', 2)

def test_a_tilde_is_the_home_of_the_user(tmp_path, monkeypatch):
    monkeypatch.setenv('HOME', str(tmp_path/'home'))
    monkeypatch.chdir(tmp_path)
    assert new_run('~/runs').is_relative_to(tmp_path/'home'/'runs') and not (tmp_path/'~').exists()
    with pytest.raises(ValueError, match='among the images'): refuse_inside('~/photos/runs', tmp_path/'home'/'photos')
