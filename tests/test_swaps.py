"Three ways to ask what a prediction rests on, what is known of objects, and choosing without groups"
import numpy as np, pandas as pd, pytest, torch
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.digits import bed_learner
from proxy_attention.experiment.arms import arms
from proxy_attention.experiment.compare import run_arm
from proxy_attention.interpret.choosing import SwappedAccuracy, SwappedSet, swapped_accuracy
from proxy_attention.interpret.swaps import object_effect, predicted, swap_effect, swap_table
from proxy_attention.masking.donors import Classes
from proxy_attention.masking.rules import rest

pytestmark = pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')

class Reads(nn.Module):
    "Two classes: is the mean of a region of the image over a half?"
    def __init__(self, *at):
        super().__init__()
        self.at,self.scale = at,nn.Parameter(torch.ones(1))
    def forward(self, x):
        v = self.scale*(x[(slice(None),slice(None),*self.at)].mean((1,2,3))-.5)
        return torch.stack([-v,v], 1)

def grey(n=40, side=16):
    "Images of one grey value each, dark and light in turn, hot in the middle"
    x = torch.where(torch.arange(n)%2==0, .2, .8)[:,None,None,None].expand(n, 3, side, side).clone()
    heat = torch.zeros(n, side, side)
    heat[:,5:11,5:11] = 1 + torch.rand(6, 6)
    return x,heat,(torch.arange(n)%2)

middle,corner = (slice(5,11),slice(5,11)),(slice(0,3),slice(0,3))

@pytest.mark.parametrize('at,rest_carries', [(corner,1.), (middle,0.)])
def test_the_rest_is_followed_where_it_is_read(at, rest_carries):
    x,heat,preds = grey()
    other = preds.new_tensor([i^1 for i in range(len(x))])
    same = torch.arange(len(x)).roll(2)
    t = swap_table(Reads(*at), x, heat, preds, other, same, kept=[.2], classes=2)
    assert t.loc[('rest',.2),'follows']==t.loc[('rest',.2),'carried']==rest_carries and t.loc[('rest',.2),'same_changes']==0
    assert t.loc[('look',1.),'follows']==1 # of a grey image the look is all there is

def test_what_disturbs_is_taken_off():
    "A model that any swap confuses follows nothing"
    class Confused(Reads):
        def forward(self, x): return super().forward(x)*torch.where(x.var((1,2,3))>1e-6, -1., 1.)[:,None]
    x,heat,preds = grey()
    x[:,:,5:11,5:11] = x[:,:,5:11,5:11].flip(0) # not flat any more
    x[:,:,0,0] += torch.rand(len(x), 3)*.1
    flat = x.mean((1,2,3))
    model = Reads(slice(None), slice(None))
    preds = model(x).argmax(1)
    same = torch.tensor([next(j for j in range(len(x)-1, -1, -1) if preds[j]==p and j!=i) for i,p in enumerate(preds.tolist())])
    from proxy_attention.masking.masker import Masker
    noisy = Masker('rest', lambda img: 1-img, keep=.2)
    t = swap_effect(model, x, heat, preds, same.flip(0), same, noisy, 2)
    assert t.carried==pytest.approx(t.follows-t.same_changes)

@pytest.mark.parametrize('at,name', [(middle,'object'), (corner,'around')])
def test_a_known_object_is_swapped_itself(at, name):
    x,_,preds = grey(10)
    masks = torch.zeros(10, 16, 16, dtype=torch.bool)
    masks[:,5:11,5:11] = True
    t = object_effect(Reads(*at), x, masks, preds)
    assert t.carried[name]==1 and t.carried.drop(name).item()==0
    assert t.evidence[name]==pytest.approx(1) and t.evidence.drop(name).item()==pytest.approx(0, abs=1e-6)
    assert t.masked['object']==pytest.approx(36/256) and t.masked['around']==pytest.approx(1-36/256)
    assert object_effect(Reads(*at), x[:1], masks[:1], preds[:1]).isna().all(None)

class Weighs(nn.Module):
    "Scores a linear mixture of two places: a fraction of what it reads is around the object"
    def __init__(self, around, single=None):
        super().__init__()
        self.around,self.single = around,single
    def forward(self, x):
        o = (1-self.around)*x[:,0,7:9,7:9].mean((1,2))+self.around*x[:,0,:2,:2].mean((1,2))-.5
        return dict(column=o[:,None], flat=o).get(self.single, torch.stack([-o,o], 1)/2)

@pytest.mark.parametrize('around', [0.,.2,.5])
@pytest.mark.parametrize('single', [None,'column','flat'])
def test_evidence_is_the_part_that_a_linear_model_reads_around_the_object(around, single):
    "Where too little is around the object for any prediction to change, the evidence is known"
    says = torch.tensor([0.,1.]*10)
    x = (says[:,None,None,None]*.8+.1).expand(-1, 1, 16, 16).clone()
    masks = torch.zeros(20, 16, 16, dtype=torch.bool)
    masks[:,5:11,5:11] = True
    model = Weighs(around, single)
    t = object_effect(model, x, masks, predicted(model, [x])[0])
    assert t.evidence['around']==pytest.approx(around, abs=1e-5) and t.evidence['object']==pytest.approx(1-around, abs=1e-5)
    assert t.error.max()<1e-5 and (around>=.5 or t.carried['around']==0)

@pytest.fixture(scope='module')
def cheat(tmp_path_factory):
    path = digits(tmp_path_factory.mktemp('d')/'bed', n=500)
    learn = digits_learner(path, bs=8)
    with learn.no_bar(), learn.no_logging(): learn.fit(1, 2e-3)
    return learn,path

def test_a_probe_with_objects(cheat):
    learn,path = cheat
    p = probe(learn, objects={str(f):(6,6,26,26) for f in learn.dls.valid_ds.items[::6]})
    assert p.known.n==len(learn.dls.valid_ds.items[::6]) and p.known.hottest<.2 and p.leans[0]=='place'
    assert 'images whose object is known' in p.verdict()
    p = probe(learn, objects={str(learn.dls.train_ds.items[i]):(6,6,26,26) for i in range(30)}, n=40)
    assert p.what=='training images' and p.known.n==30 and len(p.preds)==40
    alike = {str(f):(6,6,26,26) for f in learn.dls.valid_ds.items[:4]} # files are in the order of the classes
    same = probe(learn, objects=alike)
    assert not same.on_object and 'of several classes' in same.verdict() and 'nan' not in same.verdict()+same.in_short
    one = {str(learn.dls.train_ds.items[0]):(6,6,26,26)}
    with pytest.raises(ValueError, match='known in 0 of the 100 probed images'): probe(learn, items='valid', objects=one)
    with pytest.raises(ValueError, match='kept is empty'): probe(learn, kept=())
    about = probe(learn, objects=path/'about.csv', n=60) # the bed's own table knows the patch
    assert about.known.hottest>.8 and about.known.table.carried['object']>about.known.table.carried['around']

@pytest.mark.parametrize('sizes', [(5,1,20), (7,7), (1,1,1,300)])
def test_classes_are_drawn_equally(sizes):
    c = Classes(np.repeat(np.arange(len(sizes)), sizes))
    n = 101
    drawn = c.equally(n, 3)
    count = np.bincount(c.of[drawn], minlength=len(sizes))
    assert len(drawn)==n and count.max()-count.min()<=1 and drawn==c.equally(n, 3)!=c.equally(n, 4)
    times = np.bincount(drawn, minlength=len(c.of))
    for own in c.members.values(): assert times[own].max()-times[own].min()<=1

def test_served_in_balance(few, quiet):
    "Each class as often, in an epoch as long as before, and only once proxies are served"
    seen = []
    class See(Callback):
        def before_batch(self):
            if self.training: seen.append((self.epoch, self.yb[0].cpu()))
    learn = digits_learner(few, cbs=[ProxyAttention(select='all', steps=[1,'p',2], balance=True, fill='zero'), See()])
    quiet(learn, 'fit', 3, 1e-3)
    by = [torch.cat([y for e,y in seen if e==k]) for k in range(3)]
    assert len({len(o) for o in by})==1
    spread = [int(o.bincount(minlength=10).max()-o.bincount(minlength=10).min()) for o in by]
    assert max(spread[1:])<=3 and 'get_idxs' not in learn.dls.train.__dict__
    with pytest.raises(TypeError, match="balance='yes'"): ProxyAttention(balance='yes')

@pytest.mark.parametrize('recipe', ['background','look'])
def test_recipes_that_keep_the_object(few, quiet, recipe):
    learn = digits_learner(few)
    quiet(learn, 'fit', 1, 1e-3)
    pa = getattr(ProxyAttention, recipe)
    learn.add_cb(pa())
    quiet(learn, 'fit_proxy', 3, 1e-3)
    pa = learn.proxy_attention
    assert len(pa.history)==1 and len(pa.served) and (pa.served.area==1).all()==(recipe=='look') and (pa.served.donor>=0).all()
    if recipe=='background': assert pa.served.area.between(.3, .75).mean()>.5

def test_another_rule_leaves_the_keep_behind():
    assert ProxyAttention.background(rule='area', area=.1).masker.kwargs==dict(area=.1)

def test_the_rest_keeps_a_margin():
    heat = torch.zeros(1, 20, 20)
    heat[0,10,10] = 1
    assert [int((~rest(heat, .01, m)).sum()) for m in (0,.05,.1)]==[1,9,25]

def test_a_suspect_sees_larger_images():
    net,x = nn.Sequential(nn.Conv2d(3, 4, 3, 4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)),torch.rand(2, 3, 32, 32)
    one,two = (Suspect(net, 'GradCAM', size=o)(net, target=0)(x) for o in (None,(64,96)))
    assert one.shape==(2,8,8) and two.shape==(2,16,24) and 'size=(64, 64)' in repr(Suspect(net, size=64))
    with pytest.raises((TypeError,ValueError), match='size=2'): Suspect(net, size=2)
    with pytest.raises(ValueError, match='or one number for both'): Suspect(net, size=(64,64,64))

def test_a_suspect_with_another_size_in_a_fit(few, quiet):
    learn = digits_learner(few)
    quiet(learn, 'fit', 1, 1e-3)
    learn.add_cb(ProxyAttention.background(attribution=Suspect(learn, size=64), steps=['p',2]))
    quiet(learn, 'fit_proxy', 2, 1e-3)
    assert learn.proxy_attention.history.epoch.tolist()==[-1] and learn.proxy_attention.store.grids.shape[1:]==(16,16)

# Choosing

def test_swapped_accuracy(cheat):
    learn,path = cheat
    rng,before = torch.get_rng_state(),{k:v.clone() for k,v in learn.model.state_dict().items()}
    acc = swapped_accuracy(learn, 'hot')
    assert torch.equal(rng, torch.get_rng_state()) and all(torch.equal(before[k], v) for k,v in learn.model.state_dict().items())
    assert acc==swapped_accuracy(learn, 'hot') and acc<accuracy_on(learn, path/'valid')-.3
    assert swapped_accuracy(learn, 'rest')>acc+.2
    images = SwappedSet.of(learn, 'hot', n=20).images
    assert len(images)==20
    with pytest.raises(ValueError, match="did you mean 'rest'"): swapped_accuracy(learn, 'rset')
    with pytest.raises(ValueError, match='n=1'): swapped_accuracy(learn, 'hot', n=1)

def test_it_is_a_metric_that_others_can_choose_by(few, quiet, tmp_path, weights, same):
    "It changes nothing of the training, a tracker knows it by its name, and it goes along with an export"
    ends = []
    for more in ([], [SwappedAccuracy('hot')]):
        learn = digits_learner(few)
        learn.path,learn.metrics = tmp_path,[*learn.metrics, *more]
        quiet(learn, 'fit', 2, 1e-3)
        ends.append(weights(learn))
    assert same(*ends)
    assert learn.recorder.metric_names[-2]=='hot_swapped' and all(0<=o[-1]<=1 for o in learn.recorder.values)
    quiet(learn, 'fit', 1, 1e-3, cbs=SaveModelCallback('hot_swapped'))
    assert (tmp_path/'models'/'model.pth').exists()
    learn.export(tmp_path/'model.pkl')
    assert load_learner(tmp_path/'model.pkl').metrics[-1].name=='hot_swapped'

def test_groups_of_a_table(tmp_path):
    "They are named by the file, not by the columns of the table"
    path = digits(tmp_path/'bed', n=60)
    files = get_image_files(path)
    df = pd.DataFrame(dict(file=[str(f) for f in files], label=[f.parent.name for f in files], valid=[f.parts[-3]=='valid' for f in files]))
    def make(seed):
        set_seed(seed)
        dls = ImageDataLoaders.from_df(df[df.valid | df.file.str.contains('/train/')], path='/', valid_col='valid', bs=16, num_workers=0)
        return Learner(dls, digits_net(10), metrics=accuracy)
    rec = run_arm(make, arms['classes equally'], 'x', 0, 2, 1e-3, dict(plain=df[df.file.str.contains('/plain/')]),
                  groups=lambda f: f'even {int(f.stem)%2==0}')
    assert set(rec['tests']['plain']['groups'])=={'even True','even False'}

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
