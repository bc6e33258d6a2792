"A frozen network looks at the same image in the same way: its heat is made once"
import pickle
from copy import deepcopy
from dataclasses import replace
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.digits import digits_net
from proxy_attention.attribution.methods import Suspect
from proxy_attention.experiment.identity import what_is
from proxy_attention.proxy.step import Settings, heat_of_items

class Looks:
    "GradCAM that says how many images it was shown; zeros for those whose pixels have a larger mean than `dark`"
    def __init__(self, dark=9., side=None): self.n,self.dark,self.side = 0,dark,side
    def __call__(self, model, layer=None, target='pred', **kwargs):
        cam = GradCAM(model, target=target)
        def heat(xb, yb=None):
            self.n += len(xb)
            h = cam(xb, yb)*(xb.mean((1,2,3))<self.dark)[:,None,None]
            return h if self.side is None else h[:,:1,:1].expand(-1, self.side, self.side)+torch.rand(1, self.side, self.side)
        return heat

@pytest.fixture(scope='module')
def learn(few): return digits_learner(few)

@pytest.fixture(scope='module')
def net(): return digits_net()

def looked(looks, *args, **kwargs):
    "How many images were looked at for it, and the heat"
    before = looks.n
    heat,bad,*_ = heat_of_items(*args, **kwargs)
    return looks.n-before,heat,bad

def test_only_new_items_are_looked_at(learn, net):
    looks = Looks()
    s = Settings(attribution=Suspect(net, looks), target='pred')
    assert [looked(looks, learn, o, torch.arange(a, b))[0] for o,a,b in ((s,0,20),(s,0,20),(replace(s),10,30),(s,0,30))]==[20,0,10,0]
    _,fresh,bad = looked(Looks(), learn, Settings(attribution=Suspect(net, Looks()), target='pred'), torch.arange(5, 35))
    n,heat,known = looked(looks, learn, s, torch.arange(5, 35))
    assert n==5 and torch.allclose(heat, fresh, atol=2e-3) and torch.equal(bad, known) and heat.std()>.05
    n,some,_ = looked(looks, learn, s, torch.tensor([3,9,33]))
    assert not n and torch.equal(some[1:], heat[[4,28]])

def test_what_makes_other_heat_is_looked_at_again(learn, net, few):
    looks,idxs = Looks(),torch.arange(6)
    s = Settings(attribution=Suspect(net, looks), target='pred')
    other = digits_learner(few)
    for kw in (dict(), dict(target=0), dict(target=1), dict(grid=4), dict(layer='0')):
        assert looked(looks, learn, replace(s, **kw), idxs)[0]==6 and not looked(looks, learn, replace(s, **kw), idxs)[0], kw
    assert looked(looks, learn, s, idxs, (40,40))[0]==6 and looked(looks, learn, s, idxs, (28,28))[0]==6
    assert looked(looks, other, s, idxs, (28,28))[0]==6, 'images of another data set'
    other.dls.valid.after_batch.add(Normalize.from_stats(*imagenet_stats, cuda=False))
    assert looked(looks, other, s, idxs, (28,28))[0]==6, 'images that are normalized'

def test_a_map_that_says_nothing_is_looked_at_again(learn, net):
    looks = Looks(dark=-9.)
    s = Settings(attribution=Suspect(net, looks), target='pred')
    for _ in range(2):
        n,heat,bad = looked(looks, learn, s, torch.arange(6))
        assert n==6 and bad.all() and not heat.any()
    looks.dark = 9.
    assert not looked(looks, learn, s, torch.arange(6))[2].any()
    looks.dark = -9.
    n,heat,bad = looked(looks, learn, s, torch.arange(8)) # two that say nothing beside six that are known
    assert n==2 and bad.tolist()==[False]*6+[True]*2 and heat[:6].amax((1,2)).min()>0 and not heat[6:].any()

@pytest.mark.parametrize('side,again', [(64,0), (65,6)])
def test_maps_as_fine_as_pixels_are_not_remembered(learn, net, side, again):
    looks = Looks(side=side)
    s = Settings(attribution=Suspect(net, looks), target='pred')
    assert looked(looks, learn, s, torch.arange(6))[0]==6 and looked(looks, learn, s, torch.arange(6))[0]==again

@pytest.mark.parametrize('frozen,times', [(True,1), (False,3)])
def test_renewed_heat_of_a_frozen_network_is_looked_at_once(few, net, quiet, frozen, times):
    looks,how = Looks(),dict(select='all', losses='running', start=1, every=1, p=1., target='pred')
    pa = ProxyAttention(attribution=Suspect(net, looks) if frozen else looks, **how)
    learn = quiet(digits_learner(few, cbs=pa), 'fit', 4, 1e-3)
    assert pa.history.chosen.tolist()==[len(learn.dls.train_ds)]*3 and pa.history.made.min()>40
    assert looks.n==times*len(learn.dls.train_ds)+1, 'and one image with which the fit is checked'

def test_the_record_names_the_method_each_time(few, net, quiet):
    "Also of a step that has looked at nothing"
    pa = ProxyAttention(attribution=Suspect(net, 'GradCAM'), select='all', losses='running', start=1, every=1)
    quiet(digits_learner(few, cbs=pa), 'fit', 3, 1e-3)
    a,b = (o['method'] for o in pa.fit_state.record.steps)
    assert a==b and 'GradCAM' in a and 'to be found' not in a

def test_memory_is_no_part_of_what_a_suspect_is(learn, net):
    suspect = Suspect(net, 'GradCAM')
    before = what_is(suspect)
    heat_of_items(learn, Settings(attribution=suspect), torch.arange(6))
    assert suspect.memory is not None and what_is(suspect)==before and {'model','attribution','size'}<=set(before)
    assert deepcopy(suspect).memory is None and pickle.loads(pickle.dumps(suspect)).memory is None
