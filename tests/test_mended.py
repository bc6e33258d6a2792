"What was once broken, or could not be seen, each with a test that failed then"
import ast, gc, inspect, warnings, weakref
from pathlib import Path
from types import SimpleNamespace
import pytest, torch
from fastai.vision.all import *
from fastai.callback.all import *
from proxy_attention.all import *
from proxy_attention.experiment.config import changed
from proxy_attention.experiment.demo import verdict
from proxy_attention.interpret.heats import show_grid, show_heat, show_heats
from proxy_attention.proxy.head import HeadInputs
from proxy_attention.proxy.losses import losses_of
from proxy_attention.proxy.peers import dac

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
root = Path(__file__).parent.parent

def two_classes(path, n=60, c_out=1, loss_func=None, net=None, **kw):
    "Digits below five, or not"
    files = get_image_files(path/'train').sorted()[:n]
    def get_y(f): return int(f.parent.name)>=5
    dls = DataBlock((ImageBlock,CategoryBlock), get_y=get_y, splitter=RandomSplitter(.2, seed=1)).dataloaders(
        files, bs=8, num_workers=0, **kw)
    net = net or nn.Sequential(*digits_net()[:-1], nn.Linear(64, c_out))
    return Learner(dls, net, loss_func=loss_func or BCEWithLogitsLossFlat())

# One logit

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

# A body that is frozen by its own `no_grad`

class Frozen(nn.Module):
    "Features that nobody may train"
    def __init__(self):
        super().__init__()
        self.body,self.head = nn.Sequential(*digits_net()[:5]),nn.Sequential(AdaptiveAvgPool(), Flatten(), nn.Linear(64,10))
    def forward(self, x):
        with torch.no_grad(): x = self.body(x)
        return self.head(x)

@pytest.mark.parametrize('how', ['LayerCAM','GradCAM','GradCAMPlusPlus'])
def test_a_body_under_no_grad(few, how):
    "Heat as if gradients flowed, and no gradient is left anywhere"
    torch.manual_seed(0)
    model = Frozen().eval()
    x = torch.stack([image2tensor(PILImage.create(f))/255 for f in get_image_files(few/'valid').sorted()[:6]])
    cam = globals()[how]
    heat = cam(model, layer='body', target='pred')(x)
    free = nn.Sequential(model.body, model.head).eval()
    assert torch.allclose(heat, cam(free, layer='0', target='pred')(x), atol=1e-6) and (heat.amax((1,2))>0).any()
    assert all(p.grad is None for p in model.parameters())
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0)
    learn = Learner(dls, Frozen(), cbs=ProxyAttention(attribution=how, start=1))
    with learn.no_bar(), learn.no_logging(): learn.fit(2, 1e-3)
    assert len(learn.proxy_attention.store)

def test_an_own_attribution_may_ask_autograd(few, quiet):
    "In a step and in a look, outside of `no_grad`"
    def gradients(xb, yb):
        x = xb.detach().clone().requires_grad_()
        out = learn.model(x)
        return torch.autograd.grad(out.amax(1).sum(), x)[0].abs().sum(1)
    learn = digits_learner(few, cbs=ProxyAttention(attribution=gradients, start=1))
    quiet(learn, 'fit', 2, 1e-3)
    assert len(learn.proxy_attention.store)
    assert heat_on(learn, learn.dls.valid_ds.items[:2], gradients).shape[0]==2

# Arguments

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

# One output, and it is no class

def test_a_regression_is_seen_by_its_labels():
    "Whole numbers in one chunk are labels all the same: their type decides, not which ones are there"
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), AdaptiveAvgPool(), Flatten(), nn.Linear(3, 1))
    x = torch.rand(4, 1, 8, 8)
    some = GradCAM(model, layer='1', target='label')
    whole = some(x, torch.tensor([0.,1.,2.5,7.]))
    parts = torch.cat([some(x[:2], torch.tensor([0.,1.])), some(x[2:], torch.tensor([2.5,7.]))])
    assert torch.equal(whole, parts)

# Loaders

@pytest.mark.parametrize('n_most', [12,40])
def test_beside_their_originals_in_a_loader_of_ones_own_order(few, quiet, n_most):
    "`augment` adds to the items that the loader would have drawn"
    learn = digits_learner(few, cbs=ProxyAttention(mode='augment', select='all', p=1., start=1, fill='zero'))
    dl,seen = learn.dls.train,[]
    dl.get_idxs = lambda: list(range(0, n_most, 2))
    dl.n,dl.drop_last = n_most//2,False
    class Count(Callback):
        def before_batch(self):
            if self.training: seen.append((self.epoch, len(self.yb[0])))
    learn.add_cb(Count())
    quiet(learn, 'fit', 2, 0.)
    n = [sum(k for e,k in seen if e==o) for o in (0,1)]
    assert n==[n_most//2, n_most] and learn.proxy_attention.served['item'].tolist()!=[] and len(learn.proxy_attention.served)==n_most//2
    assert set(learn.proxy_attention.served['item'])==set(range(0, n_most, 2))
    assert dl.get_idxs()==list(range(0, n_most, 2)) and dl.n==n_most//2

@pytest.mark.filterwarnings('error')
@pytest.mark.filterwarnings('ignore::DeprecationWarning')
def test_nothing_shadows_an_attribute_of_the_learner(few, quiet):
    "fastai warns where a callback sets, in a fit, what the learner or its model has"
    learn = digits_learner(few, cbs=(pa := ProxyAttention(start=1, share=.5)))
    for k in (*vars(pa), *'store interp proxies real size attr data masker told serves history served'.split()):
        if k!='learn' and not hasattr(learn.model, k): object.__setattr__(learn.model, k, 'that of the model')
    quiet(learn, 'fit', 2, 1e-3)
    assert len(pa.store)

def test_the_exact_pass_reads_each_item_once(path, quiet):
    "Not all items before each one"
    learn = digits_learner(path)
    class Counting(L):
        asked = 0
        def __getitem__(self, i):
            Counting.asked += len(i) if is_iter(i) else 1
            return super().__getitem__(i)
    learn.dls.train_ds.tls[0].items = learn.dls.train_ds.tls[1].items = Counting(learn.dls.train_ds.items)
    interpret_train(learn)
    n = len(learn.dls.train_ds)
    assert Counting.asked<=6*n, f'{Counting.asked} look-ups for {n} items'

def test_the_thesis_says_what_is_not_the_authors():
    card = recipes['thesis']._repr_markdown_()
    assert 'predicted' in card and 'label' in card and 'His code differs' in card

# The whole image

@pytest.mark.parametrize('kind', ['a crop of ones own', 'torchvision', 'batch'])
def test_transforms_that_hide_a_part_are_refused(few, quiet, kind):
    from torchvision import transforms as T
    class Own(Transform):
        def __init__(self, f): self.f = f
        def encodes(self, x:PILImage): return PILImage(self.f(x))
    class Batch(Transform):
        order = 99
        def encodes(self, x:TensorImage): return x[...,8:,:24]
    tfms = dict(batch=dict(batch_tfms=Batch()), torchvision=dict(item_tfms=Own(T.CenterCrop(20)))).get(
        kind, dict(item_tfms=Own(lambda x: x.crop((0,0,20,32)).resize((32,32)))))
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0, **tfms)
    with pytest.raises(ValueError, match='do not show the whole image'):
        quiet(Learner(dls, digits_net(), cbs=ProxyAttention(start=1)), 'fit', 2)

@pytest.mark.parametrize('tfms', [
    dict(item_tfms=Resize(24)), dict(item_tfms=RandomResizedCrop(24)), dict(item_tfms=[Resize(40), CropPad(32)]),
    dict(batch_tfms=aug_transforms(size=24)), dict(batch_tfms=[Normalize.from_stats(*imagenet_stats), RandomResizedCropGPU(28)])])
def test_fastais_own_transforms_are_no_trouble(few, quiet, tfms):
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0, **tfms)
    learn = quiet(Learner(dls, digits_net(), cbs=ProxyAttention(start=1)), 'fit', 2, 1e-3)
    assert len(learn.proxy_attention.store)

def test_statistics_are_those_of_the_data_set(few, quiet):
    "In a second step, too, when the loader serves proxies already"
    learn = digits_learner(few, cbs=ProxyAttention(select='all', p=1., steps=[1,'p',1,'p',1], fill='dataset_max', across=6))
    quiet(quiet(learn, 'fit', 3, 0.), 'fit', 3, 0.)
    imgs = np.stack([np.asarray(o[0]) for o in learn.dls.train_ds])
    pa = learn.proxy_attention
    assert pa.fit_state.proven.data.max==imgs.max()
    assert np.allclose(pa.fit_state.proven.data.mean, imgs.mean((0,1,2)), atol=.01)

# A house that can be built on

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

def test_a_cam_registers_itself(few, quiet):
    "One class, and its name is known in the callback, in a look, on the command line"
    from proxy_attention.attribution.cams import attributions
    class Brightest(CAM):
        "The largest channel"
        def heat(self, act, grad): return act.amax(1)
    assert attributions['Brightest'] is Brightest
    try:
        learn = quiet(digits_learner(few, cbs=ProxyAttention(attribution='Brightest', start=1)), 'fit', 2, 1e-3)
        assert len(learn.proxy_attention.store) and heat_on(learn, learn.dls.valid_ds.items[:2], 'Brightest').shape[0]==2
    finally: attributions.pop('Brightest')

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

def test_one_default_of_target_and_attribution(few, quiet):
    "What a step saw, a look shows, the probe swaps and the metrics measure: the same heat, bit for bit"
    from proxy_attention.attribution.methods import default_attribution, default_target
    from proxy_attention.proxy.step import Settings, step
    learn = quiet(digits_learner(few), 'fit_one_cycle', 2, 3e-3)
    files = learn.dls.train_ds.items[:8]
    found = step(learn, Settings(select='all', fast=False))
    rows = heat_on(learn, files)
    assert torch.allclose(found.heat[:8].half().float(), rows.half().float(), atol=2e-3)
    for f in (ProxyAttention, probe, AttentionOn, explanation_scores, heat_on, show_where, explain_images, randomised, HeatDrift):
        for k,usual in (('target',default_target),('attribution',default_attribution)):
            params = inspect.signature(f).parameters
            if k in params and params[k].default is not inspect._empty: assert params[k].default==usual, (f, k)

# What is remembered

def test_a_layer_is_found_once_per_model_and_not_held():
    import proxy_attention.attribution.cams as cams
    model,seen = digits_net().eval(),[]
    model.register_forward_hook(lambda m, args, out: seen.append(len(args[0])))
    x = torch.rand(16,3,32,32)
    for _ in range(3):
        with GradCAM(model, target='pred') as attr: attr(x)
    finding = [n for n in seen if n==1]
    assert len(seen)-len(finding)<=3+1 and len(finding)<=2, f'batches of {seen}: found from one image, once'
    ref = weakref.ref(model)
    del model, attr
    gc.collect()
    assert ref() is None

def test_a_loss_keeps_its_mean_after_an_error():
    "A loss function whose `reduction` we change for a moment has its own again, also where it refuses a batch"
    loss = nn.CrossEntropyLoss()
    with pytest.raises(IndexError): losses_of(loss, torch.zeros(2,3), torch.tensor([0,7]))
    assert loss.reduction=='mean'

# A network that is still on the processor while batches are on a GPU: fastai moves it when a fit begins, not before

class Away(nn.Sequential):
    "A network that refuses batches until it is moved to the device of its learner"
    here = False
    def to(self, *args, **kwargs):
        self.here = True
        return super().to(*args, **kwargs)
    def forward(self, x):
        if not self.here: raise RuntimeError('Input type (torch.cuda.FloatTensor) and weight type (torch.FloatTensor) should be the same')
        return super().forward(x)

some = dict(
    probe=probe, fit_head=lambda learn: learn.fit_head(None, passes=1), fit_proxy=lambda learn: learn.fit_proxy(2, 1e-3),
    swapped_accuracy=lambda learn: swapped_accuracy(learn, 'rest', n=8), heat_on=lambda learn: heat_on(learn, learn.dls.valid_ds.items[:2]),
    scores=lambda learn: explanation_scores(learn, learn.dls.valid_ds.items[:2]),
    recipe=lambda learn: learn.fit(2, 1e-3, cbs=ProxyAttention.shortcut()))

@pytest.mark.parametrize('what', some)
def test_a_network_is_moved_to_the_device_of_its_batches(few, quiet, what):
    "`Away` stands for a GPU: every way in works on a learner that was never fitted"
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0)
    learn = Learner(dls, Away(*digits_net()), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(): some[what](learn)
    assert learn.model.here

# The time of a served proxy does not grow with the number of classes

def test_the_bytes_of_kept_donors_are_counted_once(few, quiet, monkeypatch):
    "One image per class is kept for donors; what they hold is a running sum, and stays under the limit"
    import proxy_attention.proxy.serving as serving
    dls = ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0)
    learn,asked,real = Learner(dls, digits_net()),[],serving._bytes
    def counted(img):
        asked.append(1)
        return real(img)
    monkeypatch.setattr(serving, '_bytes', counted)
    seen,keep = [],serving.ServedItem.keep
    def watched(self, i, item):
        keep(self, i, item)
        seen.append((self.held, sum(real(serving.image_of(o)) for _,o in self.images.values()), len(self.images)))
    monkeypatch.setattr(serving.ServedItem, 'keep', watched)
    def fitted(): quiet(learn, 'fit', 2, 1e-3, cbs=ProxyAttention(select='all', p=.5, fill='swap', donor='other_class', start=1))
    fitted()
    assert all(held==holds for held,holds,_ in seen) and max(n for *_,n in seen)>1 and len(asked)<=2*len(seen)
    monkeypatch.setattr(serving, '_at_hand', 2*seen[0][0])
    seen.clear()
    fitted()
    assert all(held==holds<=2*seen[0][0] for held,holds,_ in seen)

# What does not fit is said before anything is trained

def tuned(path):
    dls = ImageDataLoaders.from_folder(path, train='train', valid='valid', bs=16, num_workers=0)
    return vision_learner(dls, 'test_resnet', pretrained=False, metrics=accuracy)

unfit = [dict(suspect='model.pkl'), dict(objects={'elsewhere.png':[0,0,5,5]}), dict(area=.1), dict(lr_max=1e-3),
         dict(probe=2), dict(probe=0)]
said = ('suspect is a trained Learner|name at least two training|fit_proxy takes no `area`.* to the callback|give `base_lr`'
        '|too short for 2 probe|probe=0 should be')

@pytest.mark.parametrize('args', unfit, ids=lambda o: next(iter(o)))
def test_the_head_is_not_trained_before_an_argument_is_refused(few, quiet, weights, same, args):
    learn = tuned(few)
    before = weights(learn)
    with pytest.raises((TypeError,ValueError), match=said): quiet(learn, 'fine_tune_proxy', 2, **args)
    assert same(weights(learn), before) and not hasattr(learn, 'proxy_attention')

def test_the_head_is_not_trained_before_a_loss_is_refused(few, quiet, weights, same):
    learn = tuned(few)
    learn.loss_func = lambda out,y: F.cross_entropy(out, y)
    before = weights(learn)
    with pytest.raises(TypeError, match='cannot return per-sample losses'): quiet(learn, 'fine_tune_proxy', 2)
    assert same(weights(learn), before)

@pytest.mark.parametrize('args', [dict(area=.1), dict(probe=2)], ids=lambda o: next(iter(o)))
def test_a_refused_learner_keeps_its_callbacks(few, quiet, args):
    learn = digits_learner(few)
    with pytest.raises((TypeError,ValueError), match=said): quiet(learn, 'fit_proxy', 2, **args)
    assert not hasattr(learn, 'proxy_attention')

# Several inputs

class Both(nn.Module):
    "Two images as inputs"
    def __init__(self):
        super().__init__()
        self.net = digits_net()
    def forward(self, a, b): return self.net(a)+self.net(b)

ways = dict(some, show_where=lambda learn: show_where(learn, learn.dls.valid_ds.items[:2]),
            randomised=lambda learn: randomised(learn, learn.dls.valid_ds.items[:2]),
            metric=lambda learn: SwappedAccuracy('rest').look(learn), dac=dac, interp=ProxyInterpretation.from_learner)

@pytest.mark.parametrize('what', ways)
def test_several_inputs_are_refused_in_a_sentence(few, quiet, what):
    files = get_image_files(few/'train').sorted()[:40]
    dls = DataBlock((ImageBlock,ImageBlock,CategoryBlock), n_inp=2, getters=[noop,noop,parent_label],
                    splitter=RandomSplitter(.4, seed=1)).dataloaders(files, bs=8, num_workers=0)
    learn = Learner(dls, Both(), loss_func=CrossEntropyLossFlat(), metrics=accuracy)
    with learn.no_bar(), learn.no_logging(), pytest.raises(TypeError, match='The model (takes|has) 2 inputs'): ways[what](learn)

# Progressive resizing

def test_swapped_images_have_the_present_size(few, quiet, trained):
    "The images that a suspect has swapped are made again for other loaders"
    def sized(o): return ImageDataLoaders.from_folder(few, train='train', valid='valid', bs=16, num_workers=0, item_tfms=Resize(o))
    small,large = map(sized, (28,40))
    suspect = Suspect(trained)
    learn = Learner(small, digits_net(), metrics=[accuracy, SwappedAccuracy('rest', suspect=suspect)])
    quiet(learn, 'fit', 2, 3e-3)
    learn.dls = large
    quiet(learn, 'fit', 1, 3e-3)
    assert learn.metrics[-1].set.images.shape[-2:]==(40,40)
    assert learn.recorder.values[-1][-1]==swapped_accuracy(learn, 'rest', suspect=suspect)

# The last layer alone is no training

def test_fit_head_leaves_epochs_and_rates(few, quiet, trained):
    "A network that was only loaded has no epochs and no optimizer afterwards, and one that was trained has its own"
    fresh = digits_learner(few)
    fresh.model.load_state_dict(trained.model.state_dict())
    quiet(fresh, 'fit_head', None, passes=2)
    assert fresh.opt is None and probe(fresh).epoch is None
    learn = digits_learner(few)
    quiet(learn, 'fit', 1, 3e-4)
    quiet(learn, 'fit_head', None, passes=2)
    assert learn.n_epoch==1 and [o['lr'] for o in learn.opt.hypers]==[3e-4] and probe(learn).epoch==1

# Pictures of images with alpha, or with other numbers of channels

@pytest.mark.parametrize('n', [1, 2, 4, 6])
def test_heat_over_any_number_of_channels(n):
    x,heat = torch.rand(n,12,12),torch.rand(4,4)
    ax = show_heat(x, heat)
    assert ax.images[0].get_array().shape==(12,12,3)
    shown = show_heat(x, None).images[0].get_array()
    assert np.allclose(shown, (x[:3] if n>2 else x[:1].expand(3,-1,-1)).permute(1,2,0))

# A network that has diverged

@pytest.fixture
def diverged(few, quiet):
    "A network that returns NaN"
    learn = digits_learner(few, bs=8)
    learn.remove_cb(ProgressCallback)
    with torch.no_grad(): learn.model[-1].weight.fill_(torch.nan)
    return learn

@pytest.mark.parametrize('ask', [
    probe, lambda learn: probe(learn, 'train'), lambda learn: swapped_accuracy(learn, 'rest'), lambda learn: learn.fit_head(),
    lambda learn: digits_learner(learn.dls.path, bs=8).fit_proxy(2, suspect=learn)])
def test_a_network_that_returns_nan_has_learned_something_else_than_nothing(diverged, ask):
    "It needs a lower learning rate, and not more epochs or another attribution"
    with pytest.raises(ValueError, match=r'returns NaN for (\d+) of \1 images.*lower learning rate'): ask(diverged)

def test_a_metric_does_not_stop_a_fit_that_diverges(diverged, quiet):
    diverged.metrics = [SwappedAccuracy('rest')]
    quiet(diverged, 'fit', 1, 0.)
    assert np.isnan(diverged.recorder.values[-1][-1])

# A fit without a batch, or without images

def test_a_layer_is_not_left_alone_because_no_batch_is_full(few):
    "`fit_head` returned None, as if nothing had to be swapped"
    for recipe in ('background',None):
        with pytest.raises(ValueError, match='64 training images do not fill a batch of 100.*such as `bs=16`'):
            digits_learner(few, bs=100).fit_head(recipe)

@pytest.mark.parametrize('fit', ['fit_head','fit_proxy'])
def test_an_exported_learner_has_no_training_images(few, tmp_path, fit):
    learn = digits_learner(few, bs=8)
    learn.path = tmp_path
    learn.export()
    args = () if fit=='fit_head' else (2,)
    with pytest.raises(ValueError, match='There are no training images. An exported learner has none'):
        getattr(load_learner(tmp_path/'export.pkl'), fit)(*args)

def test_attention_is_followed_again_after_an_export(few, tmp_path, quiet):
    "The callback of a loaded learner stopped the fit with an `AttributeError`"
    learn = digits_learner(few, bs=8, cbs=HeatDrift(n=2))
    learn.path = tmp_path
    quiet(learn, 'fit', 1)
    learn.export()
    new = load_learner(tmp_path/'export.pkl')
    new.dls = learn.dls
    quiet(new, 'fit', 2)
    assert list(new.heat_drift.moved().index)==[1,2] and len(learn.heat_drift.maps)==1

@pytest.mark.parametrize('look', [probe, show_where, heat_on, lambda learn,o: heats_of_labels(learn, o, '3')])
def test_a_folder_is_not_an_image(few, trained, look):
    with pytest.raises(IsADirectoryError, match='is a folder: give the files in it, such as `get_image_files'): look(trained, few/'valid')

# After `fit_head`

def test_any_fit_may_follow_that_of_the_head(few, trained, quiet):
    "`fit(1)` was refused because of steps that the user had not given"
    learn = digits_learner(few, bs=8)
    learn.model.load_state_dict(trained.model.state_dict())
    quiet(learn, 'fit_head', 'background')
    assert list(learn.proxy_attention.history.served)==[256]
    quiet(learn, 'fit', 1)
    assert list(learn.proxy_attention.history.served)==[256,64]

# Probes

def test_one_class_is_no_question(few):
    "`fit_proxy` found that predictions depend on the background, with a single class"
    files = get_image_files(few/'train'/'3')
    dls = ImageDataLoaders.from_path_func(few, files, lambda f: 'three', bs=2, num_workers=0)
    with pytest.raises(ValueError, match="There is only one class, 'three'"): probe(Learner(dls, digits_net(), loss_func=F.cross_entropy))

def test_places_of_objects_are_not_doubted_if_they_are_known(trained):
    "The verdict said that no probe can find out whether the object is at the edge, although objects were given"
    files = list(trained.dls.valid_ds.items[:40])
    found = probe(trained, files, objects={str(f):(.4,.4,.6,.6) for f in files})
    for table in (found.flips,found.swaps): table['carried'] = 0. # nothing is found
    assert found.energy.hottest['edge']>=.5 and not found.leans and not found.on_object
    said = found.verdict()
    assert 'no probe can find out' not in said
    assert f'on the object in {found.known.hottest:.0%} of the images whose object is known' in said
    found.known = None
    assert 'no probe can find out' in found.verdict()

def test_one_known_object_is_too_few(trained):
    f = str(trained.dls.valid_ds.items[0])
    with pytest.raises(ValueError, match='The object is known in 1 of the .* name at least two of them as the learner does, such as '):
        probe(trained, objects={f:(.1,.1,.5,.5)})

def test_a_part_of_ones_own(trained):
    def frame(share): return Masker('border', 'swap', width=share)
    with pytest.raises(TypeError, match='The part frame is a function of your own.*give `share`, too'): swapped_accuracy(trained, frame)
    assert 0<=swapped_accuracy(trained, frame, share=.1)<=1
    assert SwappedAccuracy(frame, share=.1).name=='frame_swapped'

# Captions

_long = ['Labrador retriever (golden retriever)', 'n02085620-Chihuahua', 'bg;red one 0.30, bg;blue 0.70', 'cat', 'a'*200]

@pytest.mark.parametrize('size', [.8,1.1,2.])
@pytest.mark.parametrize('cells', [False,True])
def test_captions_do_not_cover_each_other(size, cells):
    "Long names of classes were drawn over those of the next image"
    img = Image.new('RGB', (40,30))
    if cells: axs = show_grid([[(img,None,o) for o in _long]]*2, ['row']*2, size=size)
    else: axs = show_heats([img]*5, torch.rand(5,4,4), captions=_long, size=size)
    fig = axs[0][0].figure
    fig.canvas.draw()
    for row in axs[:2 if cells else 1]:
        boxes = [ax.title.get_window_extent() for ax in row]
        assert all(a.x1<=b.x0 for a,b in zip(boxes, boxes[1:])) and max(o.y1 for o in boxes)<=fig.bbox.height
    if cells: assert max(ax.title.get_window_extent().y1 for ax in axs[1])<=min(ax.get_window_extent().y0 for ax in axs[0])

def test_a_name_is_no_formula():
    "A class called so stopped the drawing"
    name,img = r'$\fifty{', Image.new('RGB', (8,8))
    axs = show_heats([img], torch.rand(1,4,4), [name+'$'], captions=[name+'$'])
    show_heat(img, title=name+'$')
    axs[0][0].figure.canvas.draw()
    plt.gcf().canvas.draw()

def test_the_demo_tells_a_loss_of_accuracy_in_points():
    table = pd.DataFrame([dict(flipped=.02, plain=.99), dict(flipped=.99, plain=.9)], index=['without','with proxies'])
    assert 'loses 9.0 points of accuracy' in verdict(table)

def test_what_is_not_swapped_is_named_as_the_probe_names_it(monkeypatch):
    "The kind 'edge' is the border in every sentence of a probe"
    found = SimpleNamespace(learned=True, in_short='Nothing follows.')
    monkeypatch.setattr('proxy_attention.proxy.successor.probe', lambda *o, **kw: found)
    monkeypatch.setattr('proxy_attention.proxy.successor.treatment', lambda *o: False)
    cb = SimpleNamespace(suspect=None, settings=SimpleNamespace(masker=None))
    with pytest.warns(ProxyWarning, match=r'nothing that would be swapped \(a small place, the rest, the border\)'):
        IfCarried().ask(SimpleNamespace(proxy_attention=cb))

def test_a_recipe_that_is_given_as_a_selection_is_named():
    with pytest.raises(ValueError, match=r"'shortcut' is a recipe and no selection: write `ProxyAttention.shortcut\(\)`"):
        ProxyAttention('shortcut')

def test_what_fit_head_returns_is_one_line_in_a_notebook():
    assert repr(HeadInputs(torch.zeros(1200,64), torch.zeros(1200)))=='HeadInputs of 1,200 images, 64 features'

def test_the_accuracy_is_found_among_the_metrics(few):
    from fastai.vision.all import F1Score
    learn = digits_learner(few)
    alone = accuracy_on(learn, few/'valid')
    learn.metrics = [F1Score(average='macro'), *learn.metrics]
    assert accuracy_on(learn, few/'valid')==alone!=learn.validate()[1]
    learn.metrics = []
    with pytest.raises(ValueError, match='is no accuracy'): accuracy_on(learn, few/'valid')

def test_a_refused_demo_leaves_no_folder(tmp_path):
    from proxy_attention.experiment.demo import run_demo
    with pytest.raises(ValueError, match='n=5 should be 20 or more'): run_demo(tmp_path, n=5)
    assert not [*tmp_path.iterdir()]
