import pytest, timm, torch
from copy import deepcopy
from fastai.vision.all import (BCEWithLogitsLossFlat, Callback, Learner, MixUp, SaveModelCallback, TerminateOnNaNCallback, resnet18,
                               squeezenet1_0, vision_learner)
from torch import nn
from proxy_attention.all import *
from proxy_attention.proxy.head import *

@pytest.fixture(scope='module')
def bed(tmp_path_factory): return digits(tmp_path_factory.mktemp('head'), n=300)

@pytest.fixture(scope='module')
def cheat(bed):
    learn = digits_learner(bed, bs=8)
    with learn.no_bar(), learn.no_logging(): learn.fit_one_cycle(3, 5e-3)
    return learn

@pytest.fixture
def learn(cheat, bed):
    new = digits_learner(bed, bs=8)
    new.model.load_state_dict(cheat.model.state_dict())
    new.recorder.values = [[1.,2.,3.]]
    return new

def body_of(model): return {k:v.clone() for k,v in model.state_dict().items() if not k.startswith('7.')}

def test_only_the_last_layer_changes_and_the_learner_is_as_before(learn):
    body,head,cbs = body_of(learn.model),learn.model[-1].weight.detach().clone(),[type(o) for o in learn.cbs]
    learn.model.train(); learn.model[0][1].eval()
    modes = [o.training for o in learn.model.modules()]
    found = learn.fit_head('shortcut', passes=2, fill='swap')
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in body.items())
    assert not torch.equal(head, learn.model[-1].weight) and [o.training for o in learn.model.modules()]==modes
    assert [type(o) for o in learn.cbs if not isinstance(o, ProxyAttention)]==cbs
    assert not any(o._forward_hooks for o in learn.model.modules()) and torch.is_grad_enabled()
    assert not {'create_item','get_idxs','do_item'} & set(learn.dls.train.__dict__)
    n = 2*len(learn.dls.train)*8
    assert found.x.shape==(n,64) and found.targs.shape==(n,)
    assert learn.proxy_attention.history.made.sum()>0 and len(learn.proxy_attention.served)

def test_it_votes_less_by_the_patch(learn, bed):
    before = accuracy_on(learn, bed/'flipped')
    learn.fit_head()
    assert accuracy_on(learn, bed/'flipped')>before+.3

def test_what_is_kept_is_what_goes_into_the_layer(learn):
    dl = learn.dls.valid
    x,y = body_outputs(learn, dl)
    with torch.no_grad(): out = learn.model[-1](x)
    assert torch.allclose(out, learn.get_preds(dl=dl, act=nn.Identity())[0], atol=1e-5)
    assert y.tolist()==[int(o[1]) for o in learn.dls.valid_ds]

def test_where_nothing_is_swapped_the_layer_stays(bed, tmp_path):
    honest = digits_learner(bed, bs=8)
    honest.model[-1].bias.data += torch.linspace(0, 5, 10) # always the same class: nothing has been learned
    before = deepcopy(honest.model.state_dict())
    with pytest.warns(ProxyWarning, match='has learned nothing'): assert honest.fit_head() is None
    assert all(torch.equal(v, honest.model.state_dict()[k]) for k,v in before.items())

def test_images_as_they_are_need_no_suspect(learn):
    learn.fit_head('shortcut', passes=1, fill='swap')
    assert len(learn.fit_head(None, passes=1).targs) and not hasattr(learn, 'proxy_attention')

def test_the_recipe_that_over_corrects_says_so(learn):
    "Only with its own fill; `fit_head` warns before it serves an image, and errors come first"
    for recipe in ('shortcut',recipes['shortcut']):
        with pytest.warns(ProxyWarning, match="the last layer over-corrects.*86 %.*34 %.*fill='swap'"): learn.fit_head(recipe, passes=1)
    learn.fit_head('background', passes=1)
    with pytest.raises(TypeError, match='area would not be used'): learn.fit_head(None, area=.2)

class Stop(Callback):
    order = 50
    def after_pred(self):
        if self.epoch==1: raise KeyboardInterrupt

def test_stopped_halfway_nothing_is_changed(learn):
    before = deepcopy(learn.model.state_dict())
    learn.add_cb(Stop())
    with pytest.raises(KeyboardInterrupt): learn.fit_head('shortcut', passes=3, fill='swap')
    assert all(torch.equal(v, learn.model.state_dict()[k]) for k,v in before.items())
    assert not any(o._forward_hooks for o in learn.model.modules()) and torch.is_grad_enabled()

def test_labels_are_not_mixed_and_watchers_step_aside(learn, tmp_path):
    learn.path,was = tmp_path,learn.recorder.values
    learn.add_cbs([MixUp(1.), SaveModelCallback(), TerminateOnNaNCallback()])
    found = learn.fit_head(None, passes=1)
    assert not found.targs.is_floating_point() and not list(tmp_path.rglob('*.pth'))
    assert any(isinstance(o, MixUp) for o in learn.cbs) and learn.recorder.values is was

def test_half_precision_is_left_again(learn):
    learn.to_bf16()
    learn.fit_head(None, passes=1)
    assert not torch.is_autocast_enabled('cpu') and last_layer(learn.model, torch.rand(1,3,28,28)).weight.dtype==torch.float32

@pytest.mark.parametrize('net,size', [('resnet10t',64), ('vit_tiny_patch16_224',224), ('regnetx_002',64), ('convnext_atto',64)])
def test_the_last_layer_of_timm(net, size):
    model = timm.create_model(net, num_classes=3)
    assert last_layer(model, torch.rand(1,3,size,size)) is model.get_classifier()

def test_the_last_layer_of_fastai_and_inside_a_wrapper(bed, learn):
    model = vision_learner(learn.dls, resnet18, pretrained=False).model
    assert last_layer(model, torch.rand(1,3,64,64)) is model[1][-1]
    assert last_layer(nn.DataParallel(learn.model), torch.rand(1,3,28,28)) is learn.model[-1]

def test_a_head_of_fastai_whose_last_layer_has_no_bias(bed):
    learn = digits_learner(bed, bs=8)
    learn = vision_learner(learn.dls, resnet18, pretrained=False, n_in=3)
    keys = list(learn.model.state_dict())
    assert last_layer(learn.model, torch.rand(1,3,64,64)).bias is None
    with learn.no_bar(): found = learn.fit_head(None, passes=1)
    assert list(learn.model.state_dict())==keys
    out = found.x@last_layer(learn.model, torch.rand(1,3,64,64)).weight.T
    assert (out.argmax(1)==found.targs).float().mean()>.5 # of ten classes

def test_models_without_such_a_layer():
    for model,why in ((squeezenet1_0(num_classes=3),'does not end in a linear layer: train the whole model'),
                      (nn.Sequential(nn.Flatten(), nn.Linear(3*64*64, 1)),'has a single output')):
        with pytest.raises(TypeError, match=why): last_layer(model, torch.rand(1,3,64,64))

def test_what_cannot_be_fitted():
    x,y = torch.rand(6,2),torch.tensor([0,1,0,1,0,1])
    with pytest.raises(ValueError, match='Class 2 of 3 has no image among the 6'): fit_linear(x, y, 3)
    with pytest.raises(ValueError, match='not finite for 1 of 6 images'): fit_linear(torch.cat([x[:5],x[:1]*torch.nan]), y, 2)
    with pytest.raises(ValueError, match='penalty'): fit_linear(x, y, 2, penalty=-1)

def test_classes_count_alike_and_rows_by_their_weights():
    gen = torch.Generator().manual_seed(1)
    y = torch.tensor([0]*190+[1]*10)
    x = torch.randn(200, 1, generator=gen)+y[:,None]*1.
    w,b = fit_linear(x, y, 2, 1e-6)
    recall = ((x@w.T+b).argmax(1)[y==1]==1).float().mean()
    assert recall>.5 # an unweighted fit finds next to none of them
    w0,b0 = fit_linear(x, y, 2, 1e-6, torch.ones(200))
    assert ((x@w0.T+b0).argmax(1)[y==1]==1).float().mean()<recall
    doubled = fit_linear(torch.cat([x,x[:50]]), torch.cat([y,y[:50]]), 2, 1e-3, torch.ones(250))
    weighted = fit_linear(x, y, 2, 1e-3, torch.cat([torch.full((50,), 2.), torch.ones(150)]))
    out = [x@w.T+b for w,b in (doubled,weighted)]
    assert torch.allclose(*(o.softmax(1) for o in out), atol=.01) # the same but for the scale of the features

def test_a_body_that_gives_nan_is_told(learn):
    with torch.no_grad(): learn.model[0][0].weight[0,0,0,0] = float('nan')
    with pytest.raises(ValueError, match='not finite for'): learn.fit_head(None, passes=1)

def test_refusals(learn):
    own = ProxyAttention.late()
    learn.add_cb(own)
    with pytest.raises(ValueError, match="recipe 'shortcut' does not probe"): learn.fit_head('shortcut', objects={'a.png':(0,0,1,1)})
    with pytest.raises(ValueError, match='did you mean'): learn.fit_head('shortcutt')
    with pytest.raises(TypeError, match='should be the name of a recipe'): learn.fit_head(3)
    for bad in (-1,float('nan')):
        with pytest.raises((TypeError,ValueError), match='penalty'): learn.fit_head(penalty=bad)
    assert learn.proxy_attention is own # what is refused changes nothing
    with pytest.raises(ValueError, match='passes'): learn.fit_head(None, passes=0)
    with pytest.raises(TypeError, match='A suspect is'): learn.fit_head('shortcut', suspect=3)
    with pytest.raises(TypeError, match='has an attribution already'):
        learn.fit_head('shortcut', suspect=Suspect(learn), attribution='GradCAM')

def test_another_attribution_is_that_of_the_model_itself(learn):
    learn.fit_head('shortcut', passes=1, attribution='GradCAM', fill='swap')
    assert 'GradCAM' in learn.proxy_attention.fit_state.record.steps[-1]['method']

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

def test_any_fit_may_follow_that_of_the_head(few, trained, quiet):
    "`fit(1)` was refused because of steps that the user had not given"
    learn = digits_learner(few, bs=8)
    learn.model.load_state_dict(trained.model.state_dict())
    quiet(learn, 'fit_head', 'background')
    assert list(learn.proxy_attention.history.served)==[256]
    quiet(learn, 'fit', 1)
    assert list(learn.proxy_attention.history.served)==[256,64]

def test_a_layer_is_not_left_alone_because_no_batch_is_full(few):
    "`fit_head` returned None, as if nothing had to be swapped"
    for recipe in ('background',None):
        with pytest.raises(ValueError, match='64 training images do not fill a batch of 100.*such as `bs=16`'):
            digits_learner(few, bs=100).fit_head(recipe)

def test_what_fit_head_returns_is_one_line_in_a_notebook():
    assert repr(HeadInputs(torch.zeros(1200,64), torch.zeros(1200)))=='HeadInputs of 1,200 images, 64 features'
