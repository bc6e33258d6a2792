"The old promises, for every kind of label: one class, several, classes of pixels, a number, points; and what is special about numbers"
import ast, random, re
from functools import partial
import pytest, torch
from fastai.vision.all import *
from fastai.callback.training import GradientAccumulation
from proxy_attention.all import *
from proxy_attention.core import ProxyWarning
from proxy_attention.data.loaders import check_whole, train_items, whole_dl
from proxy_attention.attribution.tasks import Numbers, label_of, tasks
from proxy_attention.interpret.moves import fit_of, numbers_of

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning', 'ignore:load_learner:UserWarning')
root = Path(__file__).parent.parent
size = 24

@pytest.fixture(scope='session')
def squares(tmp_path_factory):
    "A folder with grey noise and a square of some brightness; the name of a file tells its row, its column and its brightness"
    d,rng = tmp_path_factory.mktemp('squares'),np.random.default_rng(0)
    for i in range(40):
        x = rng.integers(0, 50, (size,size,3), dtype=np.uint8)
        r,c,v = (int(o) for o in (*rng.integers(1, size-5, 2), rng.integers(4,13)))
        x[r:r+4,c:c+4] = 20*v
        Image.fromarray(x).save(d/f'{i:02}_{r}_{c}_{v}.png')
    return d

def of(f): return [int(o) for o in f.stem.split('_')[1:]]
def mask_of(f):
    r,c,_ = of(f)
    m = np.zeros((size,size), np.uint8)
    m[r:r+4,c:c+4] = 1
    return m
def sides(f): return ['left' if of(f)[1]<10 else 'right', 'dark' if of(f)[2]<8 else 'bright']
def pixel_net():
    conv = partial(nn.Conv2d, kernel_size=3, padding=1)
    return nn.Sequential(conv(3, 8), nn.ReLU(), conv(8, 8), nn.ReLU(), conv(8, 2))
def centre_of(f): return [[of(f)[1]+2, of(f)[0]+2]]

kinds = dict( # name → block, label, network, loss
    one=(CategoryBlock, lambda f: sides(f)[0], partial(digits_net, 2), CrossEntropyLossFlat),
    several=(MultiCategoryBlock, sides, partial(digits_net, 4), BCEWithLogitsLossFlat),
    pixels=(partial(MaskBlock, codes=['rest','square']), mask_of, pixel_net, partial(CrossEntropyLossFlat, axis=1)),
    numbers=(RegressionBlock, lambda f: of(f)[2]/4, partial(digits_net, 1), MSELossFlat),
    points=(PointBlock, centre_of, partial(digits_net, 2), MSELossFlat))
every = pytest.mark.parametrize('kind', kinds)

def learner(path, kind, cbs=None, loss=None, label=None, n_out=None, bs=8, **kwargs):
    "A small learner; `kwargs` go to its loaders"
    block,y,net,loss_ = kinds[kind]
    set_seed(0)
    dls = DataBlock((ImageBlock,block() if isinstance(block, partial) else block), get_items=lambda p: get_image_files(p).sorted(),
                    get_y=label or y, splitter=IndexSplitter(range(8)), item_tfms=kwargs.pop('item_tfms', None),
                    batch_tfms=kwargs.pop('batch_tfms', [Flip()])).dataloaders(path, bs=bs, **dict(dict(num_workers=0), **kwargs))
    return Learner(dls, net() if n_out is None else digits_net(n_out), loss_func=loss or loss_(), cbs=cbs)

def attention(**kwargs): return ProxyAttention(**dict(dict(start=1, select='all', p=.7, fill='swap'), **kwargs))

# ---- which task

@every
def test_found_by_label_and_loss(squares, kind): assert find_task(learner(squares, kind)).name==kind

@pytest.mark.parametrize('kind,found', dict(one='one', several='several', numbers='numbers', points='numbers').items())
def test_found_by_the_loss_in_an_export(squares, tmp_path, kind, found):
    learn = learner(squares, kind, label={'one':parent_label, 'several':several_, 'numbers':number_, 'points':points_}[kind])
    learn.dls.train.after_batch.fs.clear()
    learn.export(tmp_path/'m.pkl')
    loaded = load_learner(tmp_path/'m.pkl')
    assert label_of(loaded.dls) is None and find_task(loaded).name==found
def several_(f): return [parent_label(f)]
def number_(f): return float(f.stem.split('_')[-1])
def points_(f): return [[3,4]]

def test_no_other_module_asks_which_task_it_is():
    "The code that knows the task is in one module, and stays under 200 lines"
    names = '|'.join(o.__name__ for o in tasks.values())
    for f in (root/'proxy_attention').rglob('*.py'):
        if f.name=='tasks.py': continue
        text = f.read_text(encoding='utf-8')
        if '.tasks import' not in text: continue
        assert not re.search(rf'isinstance\([^)]*task|isinstance\([^()]*\b({names})\b|task\.name\s*[!=]=|task\.said\s*[!=]=', text), f
    f = root/'proxy_attention/attribution/tasks.py'
    code = [o for o in ast.walk(ast.parse(f.read_text(encoding='utf-8'))) if isinstance(o, ast.stmt)]
    # without texts and lists of arguments
    lines = {o.lineno for o in code if not (isinstance(o, ast.Expr) and isinstance(o.value, ast.Constant))}
    assert 50<len(lines)<200, len(lines)

# ---- the promises

@pytest.mark.parametrize('kind,workers', [*((k,0) for k in kinds), ('points',2)])
def test_idle_is_bit_exact(squares, quiet, weights, same, kind, workers):
    def run(cbs):
        learn = quiet(learner(squares, kind, cbs, num_workers=workers), 'fit', 3, 1e-2)
        return weights(learn),learn.recorder.values,(random.random(), np.random.rand(), torch.rand(1).item())
    (a,*plain),(b,*idle),(c,*_) = run(None),run(ProxyAttention(select=lambda losses: [], start=1)),run(attention())
    assert same(a, b) and plain==idle and not same(a, c)

@every
def test_nothing_of_the_data_is_touched(squares, quiet, fingerprint, tmp_path, kind):
    before = fingerprint(squares)
    learn = quiet(learner(squares, kind, attention(folder=tmp_path/'run', save_images=True)), 'fit', 3)
    pa = learn.proxy_attention
    pa.show(3)
    assert fingerprint(squares)==before and len(pa.log)==32 and pa.served['item'].nunique()==len(list((tmp_path/'run').rglob('*.png')))>0

def state(learn):
    "What an outsider sees of a learner between epochs"
    mods = [*learn.model.modules()]
    return dict(modes=[m.training for m in mods], grads=[None if p.grad is None else p.grad.tolist() for p in learn.model.parameters()],
        hooks=sum(len(m._forward_hooks)+len(m._backward_hooks)+len(m._forward_pre_hooks) for m in mods),
        rng=(torch.get_rng_state().tolist(), random.getstate(), np.random.get_state()[1].tolist()),
        cbs=[type(o) for o in learn.cbs], loader=loaders(learn), shuffle=learn.dls.train.rng.getstate(),
        reduction=learn.loss_func.reduction, needs=[p.requires_grad for p in learn.model.parameters()])
def loaders(learn):
    return [{k:v for k,v in dl.__dict__.items() if k not in ('rng','it') and not k.endswith('__idxs')} for dl in learn.dls.loaders]
class Seen(Callback):
    def __init__(self, order): self.order,self.states = order,[]
    def after_epoch(self): self.states.append(state(self.learn))

@every
def test_a_step_leaves_everything_as_it_was(squares, quiet, kind):
    before,after = Seen(ProxyAttention.order-1),Seen(ProxyAttention.order+1)
    learn = learner(squares, kind, [before, after, attention(), GradientAccumulation(40)])
    learn.model[0].eval() # one module has a mode of its own
    quiet(learn, 'fit', 3)
    assert len(learn.proxy_attention.history)==2 and learn.proxy_attention.store.grids.any()
    assert any(o is not None for o in before.states[0]['grads'])
    for a,b in zip(before.states, after.states):
        for k in a: assert a[k]==b[k], k

@every
@pytest.mark.parametrize('error', [ZeroDivisionError,KeyboardInterrupt])
@pytest.mark.parametrize('where', ['step','batch'])
def test_put_back_after_an_error(squares, quiet, kind, error, where):
    "An error in a step, and one in a batch while proxies are served"
    n = []
    def broken(xb, yb):
        n.append(1)
        if where=='step' and len(n)>2: raise error('stop')
        return xb.mean(1)
    learn = learner(squares, kind, attention(attribution=broken))
    class Stop(Callback):
        def before_batch(self):
            if where=='batch' and self.training and self.epoch==2: raise error('stop')
    learn.add_cb(Stop())
    was = loaders(learn)
    with pytest.raises(error): quiet(learn, 'fit', 4)
    assert loaders(learn)==was and '_do_epoch_train' not in learn.__dict__ and 'one_batch' not in learn.__dict__
    assert not any(m._forward_hooks for m in learn.model.modules()) and learn.loss_func.reduction=='mean'

class Served(ItemTransform):
    "Keeps the items of the training loader as they are served, before all other transforms"
    order,split_idx = -99,0
    def __init__(self): self.seen = []
    def encodes(self, xy):
        self.seen.append((np.array(xy[0]), np.array(xy[1])))
        return xy

@every
def test_remade_bit_for_bit(squares, quiet, kind):
    learn = learner(squares, kind, attention(donor='balanced' if kind!='pixels' else 'previous'), item_tfms=(kept := Served()))
    class Fresh(Callback):
        def before_train(self): kept.seen.clear()
    learn.add_cb(Fresh())
    quiet(learn, 'fit', 3)
    pa = learn.proxy_attention
    idxs = pa.served['item'].tolist()
    served = [x for x,_ in kept.seen]
    assert len(idxs)>10
    for i,made in zip(idxs, pa.proxy_images(idxs)):
        assert any(np.array_equal(made, o) for o in served) and not np.array_equal(made, learn.dls.train_ds[i][0])

@every
def test_no_proxy_in_validation(squares, quiet, kind):
    seen = []
    class Valid(Callback):
        def before_batch(self):
            if self.dl is self.dls.valid: seen.append((self.epoch, self.learn.xb[0].as_subclass(Tensor).clone()))
    quiet(learner(squares, kind, [attention(p=1.), Valid()]), 'fit', 3)
    first,last = (torch.cat([x for e,x in seen if e==k]) for k in (0,2))
    assert torch.equal(first, last)

@every
def test_resumed_bit_for_bit(squares, quiet, weights, same, tmp_path, kind):
    class Cut(Callback):
        def before_batch(self):
            if self.training and self.epoch==2 and self.iter==1: raise KeyboardInterrupt
    donor = 'previous' if kind=='pixels' else 'other_class'
    def run(folder, *cbs):
        learn = learner(squares, kind, [attention(losses='running', donor=donor), Checkpoint(folder, best='valid_loss', resume=True), *cbs])
        return quiet(learn, 'fit', 4, 1e-2)
    whole = run(tmp_path/'whole')
    with pytest.raises(KeyboardInterrupt): run(tmp_path/'cut', Cut())
    cut = run(tmp_path/'cut')
    assert same(weights(whole), weights(cut))
    assert whole.proxy_attention.served.equals(cut.proxy_attention.served) and len(cut.proxy_attention.served)

# ---- numbers

@pytest.mark.parametrize('label,loss', [
    (lambda f: of(f)[2], MSELossFlat()), (lambda f: np.float32(of(f)[2]), L1LossFlat()), (lambda f: of(f)[2]/3, nn.SmoothL1Loss()),
    (lambda f: of(f)[2]/3, nn.HuberLoss()), (lambda f: of(f)[2]/3, lambda p,t,reduction='mean': F.mse_loss(p, t, reduction=reduction))],
    ids=['int','numpy','smooth','huber','own'])
def test_losses_and_labels(squares, quiet, label, loss):
    learn = learner(squares, 'numbers', attention(labels='mix'), loss=loss, label=label)
    if not isinstance(loss, (MSELossFlat().__class__,)): learn.model.add_module('flat', nn.Flatten(0))
    quiet(learn, 'fit', 3)
    assert find_task(learn).name=='numbers' and len(learn.proxy_attention.served)>10

def test_whole_numbers_of_ones_own_data(quiet):
    "The loss decides: the same labels are classes with cross-entropy"
    data = [(torch.rand(3,16,16), i%5) for i in range(24)]
    dls = DataLoaders.from_dsets(data, data[:8], bs=8, num_workers=0)
    for loss,n,found in ((MSELossFlat(),1,'numbers'), (F.mse_loss,1,'numbers'), (CrossEntropyLossFlat(),5,'one')):
        assert find_task(Learner(dls, digits_net(n), loss_func=loss)).name==found
    learn = quiet(Learner(dls, digits_net(1), loss_func=MSELossFlat(), cbs=attention()), 'fit', 3)
    assert len(learn.proxy_attention.served)

def test_mixed_numbers(squares, quiet):
    "The label of a proxy lies between that of the item and that of its donor, by their weights"
    learn = learner(squares, 'numbers', attention(labels='mix_area', area=.3, p=1.), item_tfms=(kept := Served()))
    class Fresh(Callback):
        def before_train(self): kept.seen.clear()
    learn.add_cb(Fresh())
    quiet(learn, 'fit', 3)
    rows,ys = learn.proxy_attention.served,learn.dls.train_ds
    assert len(rows)==len(kept.seen)==32 and rows.donor_weight.between(.25,.35).all()
    for r,(_,y) in zip(rows.itertuples(), kept.seen):
        assert y==pytest.approx(float(r.label_weight*ys[r.item][1]+r.donor_weight*ys[r.donor][1]), abs=1e-4)

@pytest.mark.parametrize('kind,kw,words', [
    ('numbers', dict(select='misclassified'), "select=misclassified needs classes.*choose select='top_losses'"),
    ('numbers', dict(select=PerClass()), 'needs classes'), 
    ('points', dict(labels='mix'), "labels='mix' would put a point between"), ('numbers', dict(target='finer'), 'contrasts classes')])
def test_refused_before_the_first_batch(squares, quiet, weights, same, kind, kw, words):
    learn = learner(squares, kind, attention(**kw))
    before = weights(learn)
    with pytest.raises((TypeError,ValueError), match=words): quiet(learn, 'fit', 3)
    assert same(before, weights(learn))

def test_a_fraction_is_no_label_of_a_class(squares, quiet):
    learn = learner(squares, 'numbers', attention(), loss=BCEWithLogitsLossFlat())
    with pytest.raises(TypeError, match='BCEWithLogitsLoss: give one class per image .`CategoryBlock`'): quiet(learn, 'fit', 2)

def test_numbers_are_not_right_or_wrong(squares, quiet):
    learn = quiet(learner(squares, 'numbers', attention()), 'fit', 2)
    with pytest.raises(TypeError, match='not right or wrong: see `log'): learn.proxy_attention.suspects()
    with pytest.raises(TypeError, match='A comparison counts right predictions'): compare(lambda seed: learn, seeds=1, epochs=2, bar=False)
    with pytest.raises(TypeError, match='deletion.*choose metrics among pointing_game'): explanation_scores(learn, learn.dls.valid_ds.items)
    masks = [torch.from_numpy(mask_of(f)).bool() for f in learn.dls.valid_ds.items]
    assert explanation_scores(learn, learn.dls.valid_ds.items, masks=masks, metrics='energy').notna().all(None)
    assert len(randomised(learn, learn.dls.valid_ds.items, steps=2))==2
    it = ProxyInterpretation.from_learner(learn)
    with pytest.raises(TypeError, match='not confused'): it.plot_confusion_matrix()

def test_thirds(squares, quiet):
    "A donor of another class is one of another third of the labels"
    learn = quiet(learner(squares, 'numbers', attention(donor='other_class', p=1.)), 'fit', 3)
    pa = learn.proxy_attention
    y,rows = pa.interp.targs[:,0],pa.served
    low,high = y.quantile(torch.tensor([1/3,2/3]))
    third = (y>=low).long()+(y>=high).long()
    assert len(rows)==32 and (third[rows['item'].tolist()]!=third[rows.donor.tolist()]).all()
    assert Numbers().classes(torch.full((5,1), 2.)).unique().numel()==1 # equal labels are never in different thirds
    some = Numbers().classes(torch.tensor([[1.,9],[2,8],[-torch.inf,0],[8,2],[9,1],[5,5],[5,5]]))
    assert some[0]==some[1]!=some[3]==some[4] and some[5]==some[6]

# ---- points stay where they are

@pytest.mark.parametrize('tfms', [
    {}, dict(item_tfms=Resize(32)), dict(item_tfms=Resize((20,30), method='squish')),
    dict(item_tfms=Resize(48), batch_tfms=[Flip(1.)]),
    dict(item_tfms=Resize(48, method='pad', pad_mode='zeros'), batch_tfms=[Dihedral(p=1.)]),
    dict(item_tfms=Resize(48), batch_tfms=[Rotate(20, p=1.), Zoom(1.1, 1.1, p=1.)])], ids=lambda o: str([*o.values()])[:40])
def test_image_mask_and_points_stay_together(tmp_path, quiet, tfms):
    "The point is in the middle of a white square. Red goes where the heat is: 12 pixels below it. Both move with the image"
    rng = np.random.default_rng(0)
    for i in range(16):
        x = np.full((48,72,3), 40, np.uint8)
        r,c = int(rng.integers(8,18)),int(rng.integers(24,40))
        x[r-4:r+5,c-4:c+5] = 255
        Image.fromarray(x).save(tmp_path/f'{i:02}_{r}_{c}_5.png')
    def below(xb, yb): # heat of the row and column 12/48 of the height below the square
        h,w = xb.shape[-2:]
        white = xb.mean(1)>.8
        return torch.roll(white.float(), round(h/4), 1)
    def red(img): return torch.tensor([255.,0,0])[:,None,None].expand_as(img)
    learn = learner(tmp_path, 'points', attention(attribution=below, rule='absolute', threshold=.5, fill=red, p=1., scale=False), bs=4,
                    label=lambda f: [[of(f)[1]+.5, of(f)[0]+.5]], **dict(dict(batch_tfms=None), **tfms))
    got = []
    class Last(Callback):
        def before_batch(self):
            if not self.training or self.epoch!=2: return
            got.append((self.learn.xb[0].as_subclass(Tensor).clone(), self.learn.yb[0].as_subclass(Tensor)))
    learn.add_cb(Last())
    quiet(learn, 'fit', 3, 0.)
    x,y = (torch.cat(o) for o in zip(*got))
    n,_,h,w = x.shape
    at = torch.stack(torch.meshgrid((torch.arange(w)+.5)*2/w-1, (torch.arange(h)+.5)*2/h-1, indexing='xy'))
    def middle(o): return torch.stack([(at*k).sum((1,2))/k.sum().clamp(min=1) for k in o.float()])
    white,red_ = middle(x.min(1)[0]>.7), middle((x[:,0]>.6)&(x[:,1]<.3))
    assert (white-y[:,0]).abs().max()<2.5/min(h,w)*2
    assert ((red_-white).norm(dim=1)>.15).all() and (x[:,0]>.6).logical_and(x[:,1]<.3).flatten(1).any(1).all()

def test_the_whole_image_with_points(squares):
    for tfms in (None, Resize(20), Resize((20,30)), RandomResizedCrop(20)):
        learn = learner(squares, 'points', item_tfms=tfms)
        check_whole(learn.dls)
        x,y = whole_dl(learn.dls, train_items(learn.dls), bs=32, num_workers=0).one_batch()
        f = learn.dls.train_ds.items
        assert torch.allclose(y.as_subclass(Tensor)[:,0], torch.tensor([centre_of(o)[0] for o in f])*2/size-1, atol=1e-5)

# ---- what is explained

def test_distance():
    out = torch.tensor([[12.,-1.],[7.,4.]])
    assert torch.equal(Distance()(out), torch.tensor([13.,11.])) and torch.equal(Distance([10,0])(out), torch.tensor([3.,7.]))
    assert torch.equal(Distance([10,0], [2,1])(out), torch.tensor([2.,5.5])) and torch.equal(Distance(10)(out[:,:1]), torch.tensor([2.,3.]))
    with pytest.raises(ValueError, match='has 3 centres for 2 outputs'): Distance([1,2,3])(out)
    assert repr(Numbers().seen(torch.tensor([[1.],[3.]])).target('margin'))=='distance from 2'
    assert repr(Numbers().target(1))=='output 1'

class Sum(nn.Module):
    "The brightness of the left half minus that of the right half"
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        with torch.no_grad():
            self.conv.weight.fill_(1/3)
            self.conv.bias.zero_()
    def forward(self, x):
        o = self.conv(x)
        w = x.shape[-1]//2
        return (o[:,:1,:,:w].mean((2,3))-o[:,1:,:,w:].mean((2,3)))*100

def test_heat_is_on_what_decides_the_number(squares):
    "Also of an image with a low number, whose evidence lowers it: the raw output does not show that"
    learn = learner(squares, 'numbers', label=lambda f: 10.-of(f)[1], batch_tfms=None)
    learn.model = Sum()
    right = [f for f in get_image_files(squares) if of(f)[1]>13 and of(f)[2]>8]
    def on_square(target):
        heat = heat_on(learn, right, LayerCAM, layer='conv', target=target)
        return float(torch.stack([h[torch.from_numpy(mask_of(f)).bool()].sum()/h.sum().clamp(min=1e-6) for h,f in zip(heat, right)]).mean())
    assert right and on_square('margin')>.2 and on_square(0)<.05 and on_square(Distance(50.))>.2

# ---- pictures

@pytest.mark.parametrize('kind', ['numbers','points'])
def test_interpretation(squares, quiet, kind):
    learn = quiet(learner(squares, kind, [attention(), drift := HeatDrift(n=3)]), 'fit', 3)
    it = ProxyInterpretation.from_learner(learn)
    axs = it.plot_top_losses(4)
    row = it.decoded(it.top_losses(1)[1])[0]
    assert len(axs)==4 and 'Probability' not in axs[0].figure._suptitle.get_text() and row.pred in axs[0].get_title()
    drawn = [o for o in axs[0].collections]
    assert len(drawn)==(2 if kind=='points' else 0)
    if kind=='points':
        f = it.items_at([int(it.top_losses(1)[1])])[0]
        assert np.allclose(drawn[0].get_offsets(), centre_of(f), atol=1e-3)
    assert it.heats([0,1]).shape[0]==2 and it.show_heats([0,1]).shape==(2,2) and it.show_proxies(3).shape==(4,3)
    assert it.compare_with(learn, k=2).shape==(3,2) and 'distance from' in repr(it)
    assert it.plot_drift().shape[1]==3 and len(drift.pictures)==3
    if kind=='points':
        with pytest.raises(TypeError, match='one number per image'): it.plot_where()
    else: assert [o.get_title().split(' third')[0] for o in it.plot_where()]==['lowest','middle','highest']
    shown = learn.proxy_attention.show(3)
    assert len(shown[0][0].collections)==(kind=='points')

# ---- the probe

def wired(squares, weights):
    "A learner whose network is the sum of the brightness of cells, with these weights (h,w)"
    class Net(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale,self.w = nn.Parameter(torch.ones(1)),weights
        def forward(self, x): return self.scale*(F.adaptive_avg_pool2d(x.mean(1, keepdim=True), weights.shape)*self.w).sum((1,2,3))[:,None]
    learn = learner(squares, 'numbers', batch_tfms=None, label=lambda f: float(np.array(Image.open(f))[8:12,12:16].mean()/255))
    learn.model = Net()
    return learn

def test_probe_finds_the_cell_that_decides(squares):
    "By hand: one cell of 6×6 is the whole prediction, so a swap of this cell moves it all the way, and a swap of others not at all"
    w = torch.zeros(6,6)
    w[2,3] = 1.
    heat = lambda xb,yb: F.interpolate(w[None,None], (6,6))[:,0].expand(len(xb),6,6)
    p = probe(wired(squares, w), 'train', attribution=heat, areas=[1/36], kept=[.5], donor='other_class')
    row = p.table.loc['hot',1/36]
    assert row.moves==pytest.approx(1, abs=1e-3) and row.random_moves<.3
    assert p.table.loc['rest',.5].moves==pytest.approx(0, abs=1e-3)
    cold = lambda xb,yb: F.interpolate(w.flip(0)[None,None], (6,6))[:,0].expand(len(xb),6,6)
    q = probe(wired(squares, w), 'train', attribution=cold, areas=[1/36], kept=[.5], donor='other_class')
    assert q.table.loc['hot',1/36].moves==pytest.approx(0, abs=1e-3)
    assert 'moves 100% of the way' in p.verdict() and 'moves 0% of the way' in q.verdict()
    p.plot()
    assert 'moves 100%' in p._repr_html_() and set(p.carried.index)=={'place','rest','edge','look'}

def test_probe_concludes_nothing_from_nothing(squares, quiet):
    learn = learner(squares, 'numbers')
    assert fit_of(torch.zeros(9,1), torch.arange(9.)[:,None])==(False,pytest.approx(-2.4))
    p = probe(learn, 'train')
    assert not p.leans and ('learned nothing' in p.verdict() or 'none is reported' in p.verdict())
    flat = probe(learn, 'train', attribution=lambda xb,yb: torch.ones(len(xb),6,6))
    assert flat.n==0 and not flat.leans and flat.carried.isna().all() and flat.in_short
    flat.plot()
    with pytest.raises(TypeError, match='`objects` is for classes of whole images'): probe(learn, 'train', objects={})
    rng = random.getstate(),torch.get_rng_state()
    probe(learn)
    assert rng[0]==random.getstate() and torch.equal(rng[1], torch.get_rng_state())

def test_probe_of_points(squares):
    learn = learner(squares, 'points', batch_tfms=None)
    learn.model = nn.Sequential(nn.Conv2d(3, 4, 5, padding=2), nn.ReLU(), nn.Flatten(), nn.Linear(4*size*size, 2))
    p = probe(learn, 'train', areas=[.1], kept=[.3])
    assert p.preds.shape==(32,2) and p.error>0 and len(p.third.unique())==3

@pytest.mark.parametrize('recipe', ['shortcut','probed','background'])
def test_recipes(squares, quiet, recipe):
    learn = learner(squares, 'numbers', getattr(ProxyAttention, recipe)())
    quiet(learn, 'fit_proxy', 4, 3e-3)
    if recipe!='probed': assert len(learn.proxy_attention.served)==32

def two_classes(path, n=60, c_out=1, loss_func=None, net=None, **kw):
    "Digits below five, or not"
    files = get_image_files(path/'train').sorted()[:n]
    def get_y(f): return int(f.parent.name)>=5
    dls = DataBlock((ImageBlock,CategoryBlock), get_y=get_y, splitter=RandomSplitter(.2, seed=1)).dataloaders(
        files, bs=8, num_workers=0, **kw)
    net = net or nn.Sequential(*digits_net()[:-1], nn.Linear(64, c_out))
    return Learner(dls, net, loss_func=loss_func or BCEWithLogitsLossFlat())

def test_one_logit_for_two_classes(few, quiet):
    "Predictions are (n,), right or wrong are told apart, and suspects are those that are wrong"
    set_seed(0) # some networks are right about all digits
    learn = two_classes(few)
    learn.loss_func.activation,learn.loss_func.decodes = torch.sigmoid,lambda x: (x>.5).long()
    quiet(learn, 'fit_one_cycle', 4, 1e-2)
    interp = interpret_train(learn)
    assert interp.preds.shape==interp.targs.shape==(len(learn.dls.train_ds),)
    x = torch.stack([image2tensor(o[0])/255 for o in learn.dls.train_ds])
    with torch.no_grad(): out = learn.model.eval()(x)[:,0]
    assert torch.equal(interp.preds.long(), (out>0).long())
    learn.add_cb(pa := ProxyAttention(select='misclassified', share=1., start=1))
    quiet(learn, 'fit', 2, 0.)
    wrong = (pa.interp.preds!=pa.interp.targs).nonzero()[:,0].tolist()
    assert sorted(pa.suspects()['item'])==sorted(pa.log['item'])==wrong and 0<len(wrong)<len(interp.targs)/2

def test_a_regression_is_seen_by_its_labels():
    "Whole numbers in one chunk are labels all the same: their type decides, not which ones are there"
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), AdaptiveAvgPool(), Flatten(), nn.Linear(3, 1))
    x = torch.rand(4, 1, 8, 8)
    some = GradCAM(model, layer='1', target='label')
    whole = some(x, torch.tensor([0.,1.,2.5,7.]))
    parts = torch.cat([some(x[:2], torch.tensor([0.,1.])), some(x[2:], torch.tensor([2.5,7.]))])
    assert torch.equal(whole, parts)

def test_numbers_that_go_together_count_once():
    "A network that has learned nothing is said to have learned in about one of twenty cases, however many numbers there are"
    from scipy.stats import pearsonr
    rng = np.random.default_rng(2)
    def drawn(k, n=60): return torch.from_numpy(rng.normal(size=(n,1))+.05*rng.normal(size=(n,k))).float()
    for k in (1,10): assert .03<np.mean([fit_of(drawn(k), drawn(k))[0] for _ in range(1000)])<.07
    wrong = np.mean([fit_of(*torch.from_numpy(rng.normal(size=(2,60,10))).float())[0] for _ in range(1000)])
    assert .03<wrong<.07 # numbers that have nothing to do with each other
    for _ in range(20):
        a,b = drawn(1),drawn(1)
        assert fit_of(a, b)[0]==(pearsonr(a[:,0], b[:,0], alternative='greater').pvalue<.05)
    targs = torch.from_numpy(rng.normal(size=(60,4))).float()
    assert fit_of(targs+2*torch.from_numpy(rng.normal(size=(60,4))).float(), targs)[0]
    assert fit_of(targs, targs)==(True,1.) and not fit_of(-targs, targs)[0]
