"Pruning against torch's own by hand, zeros that stay, and a model that is always as it was: names, exports, broken fits"
import warnings
from copy import deepcopy
from functools import partial
import pytest, torch
from torch import nn
from torch.nn.utils import prune as torch_prune
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.interpret.use import open_learner
from proxy_attention.experiment.prune import prune_methods
from proxy_attention.experiment.prune import Prune, prunable, prune_globally

pytestmark = pytest.mark.filterwarnings('ignore')

def learner(path, *cbs, n=48, **kwargs):
    set_seed(0)
    dls = ImageDataLoaders.from_path_func(path, sorted((path/'train').rglob('*.png'))[::max(1, 256//n)][:n], lambda f: f.parent.name,
        bs=8, valid_pct=.25, seed=0, num_workers=0)
    set_seed(0)
    return Learner(dls, digits_net(dls.c), metrics=accuracy, cbs=list(cbs), **kwargs)

def zeros(learn): return {k:(o==0).clone() for k,o in prunable(learn.model).items()}

def prune_by_hand(model, amount, method=torch_prune.L1Unstructured):
    model = deepcopy(model)
    ps = [(m,'weight') for m in model.modules() if isinstance(m, (nn.Conv2d,nn.Linear))]
    torch_prune.global_unstructured(ps, pruning_method=method, amount=amount)
    for m,n in ps: torch_prune.remove(m, n)
    return model

class Stepped(Callback):
    "What the weights are just before pruning"
    order = Prune.order-1
    def after_epoch(self): self.seen = getattr(self, 'seen', []) + [deepcopy(self.model)]

@pytest.mark.parametrize('amount', [.1, .5, .8, .99])
def test_one_step_is_torchs_global_unstructured(path, quiet, amount):
    cb = Stepped()
    learn = learner(path, cb, Prune(amount, start=1, every=None))
    quiet(learn, 'fit', 2, 1e-3)
    by_hand = prune_by_hand(cb.seen[0], amount)
    for k,o in zeros(learn).items(): assert torch.equal(o, prunable(by_hand)[k]==0), k
    n = sum(o.numel() for o in prunable(by_hand).values())
    assert sum(int(o.sum()) for o in zeros(learn).values())==round(amount*n)

def test_gradual_is_torchs_applied_again_and_again(path, quiet):
    cb = Stepped()
    learn = learner(path, cb, Prune(.8, start=1, every=1, finish=3, ramp='linear'))
    quiet(learn, 'fit', 4, 1e-3)
    h = learn.prune.history
    assert h.epoch.tolist()==[0,1,2] and h.asked.tolist()==pytest.approx([.8/3, 1.6/3, .8])
    for model,share in zip(cb.seen, h.asked): last = prune_by_hand(model, share) # pruned weights are zero, so they are the smallest
    for k,o in zeros(learn).items(): assert torch.equal(o, prunable(last)[k]==0), k

def test_filters_are_torchs_ln_structured(path, quiet):
    cb = Stepped()
    learn = learner(path, cb, Prune(.5, start=1, every=None, method='filters'))
    quiet(learn, 'fit', 2, 1e-3)
    by_hand = cb.seen[0]
    for m in by_hand.modules():
        if isinstance(m, nn.Conv2d): torch_prune.ln_structured(m, 'weight', amount=.5, n=2, dim=0)
    for k,m in by_hand.named_modules():
        if isinstance(m, nn.Conv2d): assert torch.equal(learn.prune.weights()[k]==0, m.weight==0)
    whole = {k:(o==0).flatten(1).all(1) for k,o in learn.prune.weights().items()}
    assert [int(o.sum()) for o in whole.values()]==[8,16,32,0]

def test_filters_leave_one():
    w = dict(a=torch.randn(4,3,3,3), b=torch.randn(5,4))
    m = {k:torch.ones_like(o).bool() for k,o in w.items()}
    m = prune_methods['filters'](w, m, .99)
    assert m['a'].flatten(1).any(1).sum()==1 and m['b'].all()

@pytest.mark.parametrize('method', ['l1','random'])
def test_what_is_gone_never_comes_back(method):
    torch.manual_seed(0)
    w = dict(a=torch.randn(20,10), b=torch.randn(7,3,3,3))
    m = {k:torch.ones_like(o).bool() for k,o in w.items()}
    for share in (.2,.2,.5,.9):
        new = prune_methods[method](w, m, share)
        assert all((new[k]<=m[k]).all() for k in m)
        assert sum(int((~o).sum()) for o in new.values())==round(share*389)
        m = new
        w = {k:torch.randn_like(o) for k,o in w.items()} # whatever they have become since

@pytest.mark.parametrize('opt', [
    Adam,
    partial(SGD, mom=.9, wd=.1),
    ranger,
    RMSProp,
    partial(OptimWrapper, opt=torch.optim.AdamW)], ids=['adam','sgd','ranger','rmsprop','torch'])
def test_zero_after_every_batch_whatever_the_optimizer(path, quiet, opt):
    class Watch(Callback):
        order,n = 200,0
        def after_batch(self):
            p = self.learn.prune
            if self.training and p.masks:
                self.n += 1
                assert all((w[~p.masks[k]]==0).all() for k,w in p.weights().items())
    watch = Watch()
    learn = learner(path, Prune(.7, start=1), watch, opt_func=opt)
    quiet(learn, 'fit', 4, 1e-2, wd=.1)
    assert watch.n>5 and learn.prune.sparsity()==pytest.approx(.7, abs=1e-3)
    assert any((w[learn.prune.masks[k]]!=0).any() for k,w in learn.prune.weights().items())

def test_zero_with_accumulation_clipping_and_half_precision(path, quiet):
    learn = learner(path, Prune(.7, start=1), GradientAccumulation(16), GradientClip(.5))
    quiet(learn, 'fit', 3, 1e-2)
    assert learn.prune.sparsity()==pytest.approx(.7, abs=1e-3)

def test_gradients_of_what_is_gone_do_not_count_in_clipping(path, quiet):
    seen = []
    class Norms(Callback):
        order = 200
        def after_backward(self):
            if self.learn.prune.masks:
                seen.append(max(float(m.abs().max())
                    for m in (w.grad[~self.learn.prune.masks[k]] for k,w in prunable(self.model).items()) if m.numel()))
    quiet(learner(path, Prune(.5, start=1), Norms()), 'fit', 2, 1e-3)
    assert seen and max(seen)==0

def test_amount_0_is_bit_exact(path, quiet, weights, same):
    plain,idle = learner(path), learner(path, Prune(0.))
    for o in (plain,idle): quiet(o, 'fit_one_cycle', 3, 3e-3)
    assert same(weights(plain), weights(idle))
    assert (idle.prune.history[['asked','reached']]==0).all().all() and len(idle.prune.history)

def test_a_random_method_leaves_the_order_of_batches_alone(path, quiet):
    class Order(Callback):
        def before_fit(self): self.seen = []
        def before_batch(self): self.seen.append(self.y.tolist())
    seen = []
    for method in ('l1','random'):
        learn = learner(path, Prune(.5, start=1, method=method), o := Order())
        quiet(learn, 'fit', 3, 1e-3)
        seen.append(o.seen)
    assert seen[0]==seen[1]

def test_names_shapes_and_order_are_as_before(path, quiet):
    learn = learner(path, Prune(.5, start=1))
    before = {k:v.shape for k,v in learn.model.state_dict().items()}
    ids = [id(p) for p in learn.model.parameters()]
    class During(Callback):
        def after_batch(self):
            assert list(before)==list(self.model.state_dict()) and ids==[id(p) for p in self.model.parameters()]
            assert not torch_prune.is_pruned(self.model)
    quiet(learn, 'fit', 3, 1e-3, cbs=During())
    assert list(before.items())==[(k,v.shape) for k,v in learn.model.state_dict().items()]

def test_export_load_and_train_on(path, quiet, tmp_path):
    learn = learner(path, Prune(.6, start=1))
    quiet(learn, 'fit', 3, 1e-3)
    learn.export(tmp_path/'m.pkl')
    again = load_learner(tmp_path/'m.pkl')
    x = torch.rand(2,3,32,32)
    assert torch.equal(again.model.eval()(x), learn.model.eval()(x))
    zero = zeros(again)
    again.dls = learn.dls
    quiet(again, 'fit', 1, 1e-2)
    assert all((prunable(again.model)[k][o]==0).all() for k,o in zero.items())
    learn.save(tmp_path/'w', with_opt=False)
    assert set(torch.load(tmp_path/'w.pth', weights_only=True))==set(learn.model.state_dict())

class Stop(Callback):
    def __init__(self, epoch, event, order=0): self.at,self.event,self.order = epoch,event,order
    def __call__(self, event):
        if event==self.event and self.learn.epoch==self.at and self.learn.training: raise KeyboardInterrupt

@pytest.mark.parametrize('event,order', [
    ('before_batch',0), ('after_step',-100), ('after_step',200), ('after_backward',-100),
    ('after_epoch',Prune.order-1), ('after_epoch',Prune.order+1)])
def test_a_broken_off_fit_leaves_a_model_that_trains_and_exports(path, quiet, tmp_path, event, order):
    learn = learner(path, Prune(.6, start=1))
    stop = Stop(2, event, order) if event!='after_epoch' else StopAfter(1, order)
    with pytest.raises(KeyboardInterrupt): quiet(learn, 'fit', 5, 1e-2, cbs=stop)
    learn.remove_cbs(learn.cbs.filter(risinstance((Stop,StopAfter))))
    reached = learn.prune.gone()
    assert reached>0
    learn.export(tmp_path/'m.pkl')
    assert open_learner(tmp_path/'m.pkl').model(torch.rand(1,3,32,32)).shape==(1,10)
    masks = {k:o.clone() for k,o in learn.prune.masks.items()}
    quiet(learn, 'fit', 3, 1e-2)
    assert all((learn.prune.weights()[k][~o]==0).all() for k,o in masks.items()) and learn.prune.sparsity()==pytest.approx(.6, abs=1e-3)

class StopAfter(Callback):
    def __init__(self, epoch, order): self.at,self.order = epoch,order
    def after_epoch(self):
        if self.learn.epoch==self.at: raise KeyboardInterrupt

def test_an_error_in_the_fit_leaves_the_model_usable(path, quiet):
    learn = learner(path, Prune(.6, start=1))
    class Fail(Callback):
        def after_pred(self):
            if self.training and self.epoch==1: raise ZeroDivisionError('no')
    with pytest.raises(ZeroDivisionError): quiet(learn, 'fit', 3, 1e-3, cbs=Fail())
    quiet(learn, 'fit', 3, 1e-3)
    assert learn.prune.sparsity()==pytest.approx(.6, abs=1e-3)

def test_second_fit_goes_on_and_loaded_weights_begin_anew(path, quiet):
    learn = learner(path, Prune(.6, start=1))
    dense = {k:v.clone() for k,v in learn.model.state_dict().items()}
    quiet(learn, 'fit', 3, 1e-3)
    zero = zeros(learn)
    quiet(learn, 'fit', 3, 1e-2)
    assert all((prunable(learn.model)[k][o]==0).all() for k,o in zero.items())
    assert learn.prune.history[learn.prune.history.fit==2].reached.tolist()==pytest.approx([.6,.6], abs=1e-3)
    learn.model.load_state_dict(dense)
    learn.prune.amount = .3
    quiet(learn, 'fit', 3, 1e-3)
    assert learn.prune.sparsity()==pytest.approx(.3, abs=1e-3)

def test_best_weights_put_back_are_said(path, quiet, tmp_path):
    learn = learner(path, Prune(.9, start=2))
    learn.path = tmp_path
    class Best(SaveModelCallback):
        def after_epoch(self):
            if self.epoch==0: self._save(self.fname)
    with pytest.warns(ProxyWarning, match='no longer pruned'): quiet(learn, 'fit', 4, 1e-3, cbs=Best())
    quiet(learn, 'validate')

def test_lr_find_validate_and_preds_do_not_prune(path, quiet):
    learn = learner(path, Prune(.5, start=1))
    with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
    quiet(learn, 'validate'); quiet(learn, 'get_preds')
    assert not len(learn.prune.log) and not learn.prune.masks
    quiet(learn, 'fit', 2, 1e-3)
    zero,n = zeros(learn),len(learn.prune.log)
    with learn.no_bar(): learn.lr_find(num_it=5, show_plot=False)
    assert all(torch.equal(o, zeros(learn)[k]) for k,o in zero.items()) and len(learn.prune.log)==n

def test_with_proxies_on_one_learner(path, quiet):
    learn = learner(path, ProxyAttention.shortcut(), Prune(.5), n=64)
    seen = []
    class Look(Callback):
        order = Prune.order-.5 # after the proxy step, before the pruning of the same epoch
        def after_epoch(self):
            p = self.learn.prune
            seen.append((len(self.learn.proxy_attention.store), p.gone()))
    quiet(learn, 'fit_proxy', 5, 1e-3, cbs=Look())
    assert len(learn.proxy_attention.store)==len(learn.dls.train_ds) and learn.prune.sparsity()==pytest.approx(.5, abs=1e-3)
    assert [n for n,_ in seen]==[len(learn.dls.train_ds)]*5 and [g for _,g in seen[:2]]==[0,0] and seen[2][1]>0

def test_fine_tune_prunes_in_its_second_phase(path, quiet):
    set_seed(0)
    learn = vision_learner(learner(path).dls, 'resnet10t', pretrained=False, cbs=Prune(.5, start=1, finish=.9))
    quiet(learn, 'fine_tune', 2)
    assert learn.prune.history.fit.tolist()==[2] and learn.prune.sparsity()==pytest.approx(.5, abs=1e-3)

def test_shared_weights_are_counted_once():
    a,b = nn.Linear(4,4), nn.Linear(4,4)
    b.weight = a.weight
    assert list(prunable(nn.Sequential(a,b)))==['0']

def test_own_method_and_torchs_classes(path, quiet):
    def first(weights, masks, share):
        k = next(iter(weights))
        return masks | {k:torch.zeros_like(masks[k])}
    with pytest.warns(ProxyWarning, match=r"All weights of 1 layer are removed \(0.0\)"):
        quiet(learn := learner(path, Prune(.5, start=1, method=first)), 'fit', 2, 1e-3)
    assert (learn.prune.weights()['0.0']==0).all() and learn.prune.log.sparsity.tolist()[:2]==[1,0]
    quiet(learn := learner(path, Prune(.5, start=1, method=torch_prune.RandomUnstructured)), 'fit', 2, 1e-3)
    assert learn.prune.sparsity()==pytest.approx(.5, abs=1e-3)
    with pytest.raises(TypeError, match='should return a dict'):
        quiet(learner(path, Prune(.5, start=1, method=lambda weights: 3)), 'fit', 2, 1e-3)

@pytest.mark.parametrize('kw,error,words', [
    (dict(amount=1), ValueError, 'would remove every weight'),
    (dict(amount=1.2), ValueError, 'from 0 to 1'),
    (dict(amount='half'), TypeError, 'should be a number'),
    (dict(amount=True), TypeError, 'should be a number'),
    (dict(method='l2'), ValueError, "Available: l1"),
    (dict(ramp='cubics'), ValueError, "did you mean 'cubic'"),
    (dict(steps=[2,'p',1], start=1), ValueError, 'same thing'),
    (dict(steps='p,1'), ValueError, 'begin with a proxy step'),
    (dict(steps=Plateau()), ValueError, 'unknown number of steps'),
    (dict(method=lambda foo: 1), TypeError, 'needs `foo`'),
    (dict(start=1.5), ValueError, 'not a fraction of the fit')])
def test_wrong_arguments_are_sentences(kw, error, words):
    with pytest.raises(error, match=words): Prune(**kw)

def test_what_cannot_be_pruned_is_a_sentence(path, quiet):
    with pytest.raises(ValueError, match='more than one Prune'): quiet(learner(path, Prune(.1), Prune(.2)), 'fit', 2, 1e-3)
    with pytest.raises(ValueError, match='has no weight to prune'): prunable(nn.Sequential(nn.BatchNorm2d(3)))
    net = digits_net()
    torch_prune.l1_unstructured(net[0][0], 'weight', .5)
    with pytest.raises(ValueError, match="layer '0.0' is already pruned"): prunable(net)
    with pytest.warns(ProxyWarning, match='has no pruning step within the 1 epoch '): quiet(learner(path, Prune(.5)), 'fit', 1, 1e-3)
