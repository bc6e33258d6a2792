"The benchmark of augmentations where nothing is wrong: its arms, its measures, its records and its beds, on made data"
import importlib, itertools, json, sys, time, warnings
from functools import partial
from types import SimpleNamespace
import numpy as np, pandas as pd, pytest, torch, torch.nn.functional as F
from torch import nn
from fastai.vision.all import *
from fastai.callback.mixup import CutMix, MixUp
from proxy_attention.all import *
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.experiment.arms import split_arms
from proxy_attention.experiment.identity import what_is
from proxy_attention.masking.masker import unpack_mask
from proxy_attention.masking.rules import top_cells
from proxy_attention.proxy.serving import Proxies
sys.path.insert(0, str(Path(__file__).parent.parent/'benchmarks'))
import gain, gain_beds
from gain import Runs, arm_of, as_long, by_chance, chosen_of, convergence, ece, longer, reached, read_records, rows, searched, usual
from gain_beds import Bed, Shifted, drawn, small_tfms

def seeded(seed): return torch.Generator().manual_seed(seed)

# what an arm is

class Noted:
    "Stands for a learner: keeps what an arm asks of it"
    def __init__(self):
        self.cb,self.added = None,[]
        self.dls = SimpleNamespace(train=SimpleNamespace(after_batch=SimpleNamespace(add=self.added.append, fs=[])))
    def add_cb(self, cb):
        self.cb = cb
        return self
    def fit_one_cycle(self, *args, cbs=None, **kwargs): self.fitted,self.cbs = args,cbs

def asked(name):
    "What the arm of a name does with a learner, for 3 epochs at a rate of 0.1"
    arm_of(name)(learn := Noted(), 3, .1)
    return learn

@pytest.mark.parametrize('name,cb', [
    ('keep', lambda: ProxyAttention.keep()), ('keep(p=0.25)', lambda: ProxyAttention.keep(p=.25)),
    ('vitamin(p=1.)', lambda: ProxyAttention.vitamin(p=1.)), ('vitamin(p=.5)', lambda: ProxyAttention.vitamin(p=.5)),
    ('keep(rule=random_rest,p=0.25)', lambda: ProxyAttention.keep(rule='random_rest', p=.25)),
    ('snapmix(p=0.5,alpha=2)', lambda: ProxyAttention.snapmix(p=.5, alpha=2)),
    ('default(p=0.5)', lambda: ProxyAttention(p=.5)), ('background(p=0.5)', lambda: ProxyAttention.background(p=.5)),
    ('random rest(p=0.3)', lambda: ProxyAttention.vitamin(rule='random_rest', p=.3)),
    ('random box(p=0.3)', lambda: ProxyAttention.saliencymix(rule='box', fill='swap', p=.3))])
def test_an_arm_with_proxies_trains_one_cycle_with_what_its_name_says(name, cb):
    learn = asked(name)
    assert learn.fitted==(3,.1) and what_is(learn.cb)['asked']==what_is(cb())['asked']

def test_arms_without_proxies():
    assert asked('one cycle').fitted==(3,.1) and asked('one cycle').cb is None
    assert asked('one cycle (20 epochs)').fitted==(20,.1)==asked(longer(20)).fitted and asked('one cycle (20 epochs)').cb is None
    erasing, = asked('erasing(p=0.3)').added
    assert isinstance(erasing, RandomErasing) and erasing.p==.3 and asked('erasing(p=0.3)').fitted==(3,.1)
    for name,mixer in dict(mixup=MixUp, cutmix=CutMix).items():
        assert isinstance(asked(name).cbs, mixer) and not hasattr(asked(name).cbs, 'p')
        assert isinstance(cb := asked(f'{name}(p=0.25)').cbs, mixer) and cb.p==.25

@pytest.mark.parametrize('name,message', [
    ('kep', "did you mean 'keep'"), ('kep(p=0.5)', "did you mean 'keep'"), ('erasing', 'No arm is called'),
    ('random cells', 'No arm is called'), ('mixup (5 epochs)', 'is not an arm'), ('one cycle(p=0.5)', 'is not an arm'),
    ('erasing(p=0.5.5)', 'is not an arm'), ('keep(0.5)', 'is not an arm'),
    ('attentive_cutmix(rule=random,cells=0.1)', 'takes no `cells`'), ('keep(q=0.5)', 'takes no `q`'),
    *((f'{o}(p=1.5)', 'p=1.5 should be a number from 0 to 1') for o in ('keep','erasing','mixup','cutmix','random cells','default'))])
def test_names_that_are_refused(name, message):
    with pytest.raises((ValueError,TypeError), match=message): arm_of(name)

def test_what_is_searched():
    names = searched(usual)
    assert len(names)==len(set(names))==1+4*11==1+4*(len(usual)-1) and names.count('one cycle')==1
    assert {o for o in names if o.startswith('default')}=={f'default(p={p})' for p in (.25,.5,.75,1.)}
    assert searched(['no proxy','erasing(p=0.5)'])==['no proxy', *(f'erasing(p={p})' for p in (.25,.5,.75,1.))]
    assert searched(gain.twins)==[f'{o}(p={p})' for o in gain.twins for p in (.25,.5,.75,1.)]
    for o in (*usual,*names,*searched(gain.twins)): arm_of(o)
    assert split_arms(','.join(names+searched(gain.twins)))==names+searched(gain.twins) # as another process is told

class Watch(Callback):
    "Which batches are as they came, and whether their loss is the plain one"
    order = MixUp.order+1
    def __init__(self): self.same,self.plain,self.labels = [],[],[]
    def before_batch(self):
        if not self.training: return
        self.same.append(torch.equal(self.x, self.learn.first.was[0]))
        self.labels.append(torch.equal(self.y, self.learn.first.was[1]))
    def after_loss(self):
        if self.training: self.plain.append(torch.allclose(self.loss_grad, F.cross_entropy(self.pred, self.y), 1e-6))

class First(Callback):
    order = -100
    def before_batch(self): self.was = self.x.clone(),self.y.clone()

def mixed(mixer, p, quiet, n=240):
    "Train on `n` batches; which of them were mixed, and what `Watch` has seen"
    class Counted(mixer):
        def before_batch(self):
            self.learn.watch.mixed[-1] = True
            super().before_batch()
    class Seen(Watch):
        name = 'watch'
        def __init__(self):
            super().__init__()
            self.mixed = []
    class Counts(Callback):
        order = -99
        def before_batch(self):
            if self.training: self.learn.watch.mixed.append(False)
    set_seed(3)
    data = [(torch.rand(3, 8, 8, generator=seeded(i)), i%5) for i in range(8*n)]
    dls = DataLoaders(DataLoader(data, bs=8), DataLoader(data[:8], bs=8))
    net = nn.Sequential(nn.Flatten(), nn.Linear(192, 5))
    learn = Learner(dls, net, CrossEntropyLossFlat(), cbs=[First(), Seen(), Counts(), by_chance(Counted)(p=p)])
    quiet(learn, 'fit', 1, 1e-3)
    w = learn.watch
    return [np.array(o) for o in (w.mixed,w.same,w.labels,w.plain)]

@pytest.mark.parametrize('mixer', [MixUp,CutMix])
def test_a_share_of_the_batches_is_mixed_and_the_others_are_as_they_came(mixer, quiet):
    was,same,labels,plain = mixed(mixer, .25, quiet)
    assert len(was)==len(plain)==240 and abs(was.mean()-.25)<.1
    assert same[~was].all() and labels.all() and plain[~was].all() # labels are mixed by the loss
    assert same[was].mean()<.1 and plain[was].mean()<.1
    assert not mixed(mixer, 0., quiet, 20)[0].any() and mixed(mixer, 1., quiet, 20)[0].all()

# the twins

def both(recipe, twin): return asked(f'{recipe}(p=0.3)').cb,asked(f'{twin}(p=0.3)').cb

@pytest.mark.parametrize('recipe,twin,only', [
    ('keep','random keep',{'rule'}), ('vitamin','random rest',{'rule'}), ('snapmix','snapmix by area',{'labels'}),
    ('saliencymix','random box',{'rule','fill'}), ('attentive_cutmix','random cells',{'rule'})])
def test_a_twin_differs_in_the_place_or_in_the_weights_alone(recipe, twin, only):
    cbs = both(recipe, twin)
    a,b = (what_is(o)['asked'] for o in cbs)
    a,b = ({'fill':'swap'}|o for o in (a,b)) # the default
    assert {k for k in {*a,*b} if a.get(k)!=b.get(k)}==only and a['p']==b['p']==.3
    assert cbs[0].fit_by is cbs[1].fit_by is gain.one_cycle
    if 'rule' in only: assert cbs[0].settings.masker.by_heat and not cbs[1].settings.masker.by_heat
    else: assert cbs[0].settings.masker.rule is cbs[1].settings.masker.rule

def test_random_cells_are_as_many_at_any_place():
    heat = torch.rand(600, 7, 7, generator=seeded(0))
    heat[300:] *= torch.rand(300, 7, 7, generator=seeded(1))>.95 # few cells are above the minimum there
    a,b = (o.settings.masker for o in both('attentive_cutmix', 'random cells'))
    assert a.max_area==b.max_area and a.kwargs==b.kwargs==dict(cells=6/49)
    hot,found = a.drawn(heat),b.drawn(heat, rng=seeded(2))
    assert torch.equal(hot, top_cells(heat, 6/49)) and found.shape==hot.shape
    assert torch.equal(found.sum((1,2)), hot.sum((1,2))) and found[:300].sum((1,2)).eq(6).all() and found[300:].sum((1,2)).lt(6).any()
    each = found[:300].float().mean(0)
    assert (each-6/49).abs().max()<.09 and abs(float((found&hot)[:300].sum()/hot[:300].sum())-6/49)<.03 # no nearer to the heat than chance
    assert torch.equal(found, b.drawn(heat, rng=seeded(2))) and not torch.equal(found, b.drawn(heat, rng=seeded(3)))
    assert b.drawn(heat[0], rng=seeded(2)).sum()==6

def served(cb, n=12, side=56):
    "Images, and what a callback makes of each with the next one as its donor: the proxy, its mask, and the weights of both labels"
    imgs = [PILImage.create(torch.randint(0, 256, (side,side,3), generator=seeded(i), dtype=torch.uint8).numpy()) for i in range(n)]
    proxies = Proxies(HeatmapStore(range(n), torch.rand(n, 7, 7, generator=seeded(99))), cb.settings.masker, labels=cb.labels)
    made = [proxies.masked(o, i, lambda i=i: ((i+1)%n, imgs[(i+1)%n]), seed=5) for i,o in enumerate(imgs)]
    return [np.asarray(o) for o in imgs], [(np.asarray(new),unpack_mask(mask).numpy(),weights) for new,mask,_,weights in made]

def test_random_cells_paste_as_much_of_the_donor_at_its_own_place():
    (imgs,hot),(_,found) = map(served, both('attentive_cutmix', 'random cells'))
    for i,((_,a,was),(new,b,weights)) in enumerate(zip(hot, found)):
        assert (new[b]==imgs[(i+1)%12][b]).all() and (new[~b]==imgs[i][~b]).all()
        assert a.sum()==b.sum()==6*8*8 and weights==was and weights==pytest.approx((43/49, 6/49))
        cells = b.reshape(7, 8, 7, 8).sum((1,3))
        assert set(cells.flatten())=={0,64} # whole cells
    assert sum((a==b).all() for (_,a,_),(_,b,_) in zip(hot, found))==0

def test_snapmix_by_area_serves_the_same_images_with_other_weights():
    (_,looked),(_,found) = map(served, both('snapmix', 'snapmix by area'))
    for (a,mask,was),(b,same,weights) in zip(looked, found):
        assert (a==b).all() and (mask==same).all()
        assert weights==pytest.approx((1-mask.mean(), mask.mean())) and was!=weights

def test_random_keep_erases_as_much_elsewhere():
    (imgs,looked),(_,found) = map(served, both('keep', 'random keep'))
    for img,(_,a,_),(new,b,weights) in zip(imgs, looked, found):
        assert a.sum()==b.sum() and (a!=b).any() and weights==(1.,0.) and (new[~b]==img[~b]).all()
    assert sum((new!=img).any() for img,(new,*_) in zip(imgs, found))>8

# what a run measures

def slow_ece(probs, targs, bins):
    "Expected calibration error, a bin after the other"
    sure,right = probs.max(axis=1),probs.argmax(axis=1)==targs
    at,res = np.digitize(sure, np.linspace(0, 1, bins+1)[1:-1], right=True),0.
    for b in range(bins):
        if (at==b).any(): res += (at==b).mean()*abs(sure[at==b].mean()-right[at==b].mean())
    return res

@pytest.mark.parametrize('bins,classes,sharp', [(15,3,1.), (15,10,4.), (5,2,.3)])
def test_calibration_error(bins, classes, sharp):
    probs = (sharp*torch.randn(500, classes, generator=seeded(classes))).softmax(1)
    targs = torch.randint(classes, (500,), generator=seeded(7))
    assert ece(probs, targs, bins)==pytest.approx(slow_ece(probs.numpy(), targs.numpy(), bins), abs=1e-5) and ece(probs, targs, bins)>.01

def test_calibration_error_by_hand():
    four_of_five,targs = torch.tensor([[.9,.1]]*5),torch.tensor([0,0,0,0,1])
    assert ece(four_of_five, targs)==pytest.approx(.1, abs=1e-6)
    two_bins = torch.cat([four_of_five, torch.tensor([[.3,.7]]*5)]),torch.cat([targs, torch.tensor([1]*5)])
    assert ece(*two_bins)==pytest.approx((.1+.3)/2, abs=1e-6) # -.1+.3 in one bin would cancel
    assert ece(torch.eye(3), torch.arange(3))==0==ece(torch.full((4,2), .5), torch.tensor([0,1,0,1]))

# what came of it

def rec(arm, seed, valid=(.2,.5), test=.5, busy=10., **more):
    "A record as `Runs` keeps it: 100 images and 2 seconds an epoch"
    each = {f'{k} {i:03d}':float(v) for i,o in enumerate(valid, 1) for k,v in dict(valid=o, images=100*i, seconds=2*i).items()}
    return dict(arm=arm, seed=seed, bed='made', steps=8, seconds=11., proxies=3, proxy_seconds=.5, trained=200, looked=40,
                tests={'test':dict(accuracy=test)}, measures=dict(busy=busy, ece=.1)|each, about=dict(device='cpu')) | more

def test_a_row_per_run():
    df = rows([rec('one cycle', 1), rec('keep(p=0.5)', 2, valid=[.1,.25,.123456789], test=.75)])
    assert df.arm.tolist()==['one cycle','keep(p=0.5)'] and df.seed.tolist()==[1,2] and df.test.tolist()==[.5,.75]
    assert df['valid by epoch'].tolist()==['0.2 0.5','0.1 0.25 0.12346']
    assert df['images by epoch'].tolist()==['100 200','100 200 300'] and df['seconds by epoch'].tolist()==['2 4','2 4 6']
    assert df.busy.tolist()==[10.,10.] and df.ece.tolist()==[.1,.1] and df.device.tolist()==['cpu']*2
    assert not [o for o in df if o[-4:-3]==' '] # no column per epoch

def test_how_soon_a_goal_is_reached():
    row = rows([rec('keep', 1, valid=[.1,.6,.5,.7])]).iloc[0]
    assert [reached(row, o) for o in (.1,.2,.6,.65)]==[100,200,200,400] and np.isnan(reached(row, .8))

def test_convergence_is_paired_with_the_plain_fit():
    plain = [rec('one cycle', s, valid=[.1,.2,.8,1.]) for s in (1,2,3)] # 0.95 after 400 images
    fast = [rec('fast', s, valid=v) for s,v in ((1,[.1,1.]), (2,[.1,1.]), (3,[1.]))] # after 200, 200, 100
    some,never = [rec('some', s, valid=[.1]*7+[.94+.01*(s==2)]) for s in (1,2,3)],[rec('never', s, valid=[.5]*4) for s in (1,2,3)]
    found = convergence(rows(plain+fast+some+never))
    assert found.index.tolist()==['one cycle','fast','some','never'] and found.seeds.tolist()==[3,3,1,0]
    assert found.images.tolist()[:3]==pytest.approx([400, (200*200*100)**(1/3), 800])
    assert found.times.tolist()[:3]==pytest.approx([1., (.5*.5*.25)**(1/3), 2.])
    mean,error = np.log([.5,.5,.25]).mean(),np.log([.5,.5,.25]).std(ddof=1)/3**.5
    assert found.loc['fast',['lo','hi']].tolist()==pytest.approx(np.exp([mean-4.302653*error, mean+4.302653*error]), rel=1e-4)
    assert found.loc['never',['images','times','lo','hi']].isna().all() and found.loc['some',['lo','hi']].isna().all()

def test_chosen_by_validation_among_what_has_the_most_seeds():
    def tuned(arm, *accs): return [rec(arm, s, tests={'valid':dict(accuracy=o)}) for s,o in enumerate(accs)]
    keep = [*tuned('keep(p=0.25)', .5, .7), *tuned('keep(p=0.5)', .6, .65), *tuned('keep(p=1.0)', .9)]
    best = chosen_of([*keep, *tuned('one cycle', .8, .8), *tuned('random box(p=0.75)', .1), *tuned('random box(p=0.5)', .2)])
    assert best.arm.to_dict()=={'one cycle':'one cycle','keep':'keep(p=0.5)','random box':'random box(p=0.5)'}
    assert best['mean'].tolist()==[.8,.625,.2] and best['size'].tolist()==[2,2,1]

def test_plain_fits_as_long_as_the_arms_have_taken():
    recs = [*(rec('one cycle', s, busy=b) for s,b in enumerate((9.,10.,50.))), rec('keep', 1, busy=15.), rec('snapmix', 1, busy=15.2),
            rec('erasing', 1, busy=10.2), rec('mixup', 1, busy=8.), rec('one cycle (30 epochs)', 1, busy=99.), rec('vitamin', 1, busy=25.)]
    assert as_long(recs, 20)==['one cycle (30 epochs)','one cycle (50 epochs)']
    assert as_long(recs[3:], 20)==as_long([], 20)==[] # no plain fit to compare with

def test_a_line_that_is_cut_off_is_told_and_left_out(tmp_path, capsys):
    file = tmp_path/'made.jsonl'
    assert read_records(file)==[] and not capsys.readouterr().out
    recs = [rec('one cycle', 1),rec('keep', 1)]
    file.write_text('\n'.join(map(json.dumps, recs))+'\n')
    assert read_records(file)==recs and not capsys.readouterr().out
    file.write_text(file.read_text()[:-30])
    assert read_records(file)==recs[:1] and capsys.readouterr().out=='A line of made.jsonl is cut off, and is left out.\n'

# many runs

def tiny(n_out):
    return nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(),
                         nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, n_out))

def made_images(data, per=12, side=16):
    "Three classes, each of its own colour"
    table = [dict(name=f'{part}/{c}/{i}', label=c, part=part) for part,n in (('train',per),('test',5)) for c in 'abc' for i in range(n)]
    noise = np.random.default_rng(0).integers(0, 150, (len(table),side,side,3), dtype=np.uint8)
    return pd.DataFrame(table), noise+np.stack([np.eye(3, dtype=np.uint8)['abc'.index(o['label'])]*100 for o in table])[:,None,None], None

@pytest.fixture
def runs(tmp_path, monkeypatch):
    monkeypatch.setitem(gain_beds.sources, 'made', made_images)
    monkeypatch.setitem(gain.beds, 'made', Bed('made', tiny, small_tfms, epochs=2, lr=1e-2, bs=8, per=8, valid_per=4))
    return partial(Runs, tmp_path/'data', tmp_path/'out', 'made')

def test_runs_that_are_missing(runs):
    r = runs()
    assert r.missing(['one cycle','keep'], [1,2])==[('one cycle',1),('keep',1),('one cycle',2),('keep',2)]
    r.append(rec('keep', 1, about=r.about))
    r.append(rec('one cycle', 2, about=r.about))
    assert r.missing(['one cycle','keep'], [1,2])==[('one cycle',1),('keep',2)]
    with pytest.raises((ValueError,FileExistsError), match='other results of made'): runs(epochs=7).missing(['keep'], [1])

def test_a_record_after_a_line_that_is_cut_off_is_not_lost(runs):
    r = runs()
    r.append(rec('one cycle', 1, about=r.about))
    r.append(rec('keep', 1, about=r.about))
    r.file.write_text(r.file.read_text()[:-30])
    assert r.missing(['one cycle','keep'], [1])==[('keep',1)]
    r.append(rec('keep', 1, about=r.about))
    r.append(rec('keep', 2, about=r.about))
    assert [(o['arm'],o['seed']) for o in r.records()]==[('one cycle',1),('keep',1),('keep',2)] and not r.missing(['one cycle','keep'], [1])

def test_a_run_that_fails_is_written_down_and_the_others_go_on(runs, capsys):
    r = runs(began=time.time()-60, epochs=1)
    r.work(['shortcut','one cycle'], [3]) # a fit of one epoch is too short for a step
    assert 'too short' in r.failed('shortcut', 3).read_text() and not r.failed('one cycle', 3).exists()
    assert [(o['arm'],o['seed']) for o in r.records()]==[('one cycle',3)]
    assert r.missing(['shortcut','one cycle'], [3])==[] and not r.take('shortcut', 3) # not again by this command
    later = runs(began=time.time()+60, epochs=1)
    assert later.missing(['shortcut','one cycle'], [3])==[('shortcut',3)] # a new one tries it
    with gain.FileLock(r.failed('shortcut', 3).with_suffix('.lock')): assert not later.take('shortcut', 3) # another process is at it
    runs(end=time.time()-1, epochs=1).work(['one cycle'], [4])
    assert len(r.records())==1 and 'The time is over' in capsys.readouterr().out

def test_from_runs_to_tables(runs, tmp_path, capsys):
    r = runs()
    r.work(['one cycle','cutmix(p=0.5)'], [1,2])
    recs = r.records()
    assert len(recs)==4 and len({o['start'] for o in recs})==2 # both arms of a seed begin alike
    for o in recs:
        m = o['measures']
        assert o['trained']==m['images 002']==48==2*m['images 001'] and o['steps']==6 and o['tests'].keys()=={'test'} # 3·8 an epoch
        assert 0<m['seconds 001']<m['seconds 002']==m['busy'] and 0<=m['ece']<=1
    tuned = runs(tune=True)
    tuned.work(['one cycle'], [1])
    assert [o['tests'].keys() for o in tuned.records()]==[{'valid'}] and 'ece' not in tuned.records()[0]['measures'] # no test image is seen
    assert tuned.records()[0]['tests']['valid']['accuracy']==tuned.records()[0]['measures']['valid 002']
    gain.gather(tmp_path/'out', tmp_path/'gain.csv')
    table,s = (pd.read_csv(tmp_path/f'{o}.csv') for o in ('gain','gain_stats'))
    assert table[['arm','seed']].values.tolist()==[[o['arm'],o['seed']] for o in recs] and {'test','ece','busy'}<=set(table)
    assert {'accuracy','loss','ece','busy','images to 95 %'}==set(s.metric) and set(s.bed)=={'made'}
    acc,gap = table.groupby('arm').test.mean(),s[(s.metric=='accuracy')&(s.arm!='one cycle')]['diff'].item()
    assert gap==pytest.approx(acc['cutmix(p=0.5)']-acc['one cycle'], abs=1e-4)
    assert json.loads((tmp_path/'gain_chosen.json').read_text())=={'one cycle':'one cycle'} and 'made-tuning' in capsys.readouterr().out

# the beds

@pytest.mark.parametrize('per,valid_per,want', [(5,3,(5,3)), (None,3,(17,3)), (None,None,(18,2)), (30,4,(16,4))])
def test_what_is_drawn(per, valid_per, want):
    table = pd.DataFrame([dict(name=f'{part}{c}{i}', label=c, part=part) for part in ('test','train') for c in 'abc' for i in range(20)])
    of = dict(zip(table.name, table.label))
    bed = Bed('made', tiny, small_tfms, 1, 1e-3, per=per, valid_per=valid_per)
    train,valid = drawn(bed, table, 11)
    for names,n in zip((train,valid), want):
        assert {c:[of[o] for o in names].count(c) for c in 'abc'}==dict.fromkeys('abc', n) and len(set(names))==3*n
    assert not set(train)&set(valid) and all(o.startswith('train') for o in train+valid)
    assert drawn(bed, table, 11)==(train,valid) and set(drawn(bed, table, 12)[1])!=set(valid)

def test_images_are_shifted_whole_each_by_its_own_way():
    f,x = Shifted(2),TensorImage(torch.rand(200, 3, 9, 12, generator=seeded(0))+.1)
    set_seed(1)
    new = f(x, split_idx=0)
    assert type(new) is TensorImage and new.shape==x.shape and f(x, split_idx=1) is x # validation images stay
    big,ways,all_ways = F.pad(x.as_subclass(Tensor), [2]*4),[],list(itertools.product(range(5), repeat=2))
    for k,o in enumerate(new.as_subclass(Tensor)):
        found = [(dy,dx) for dy,dx in all_ways if torch.equal(o, big[k,:,dy:dy+9,dx:dx+12])]
        assert len(found)==1
        ways += found
    assert set(ways)==set(all_ways)
    assert torch.equal(Shifted(0)(x, split_idx=0), x)

def test_spoiled_photographs_are_parts_of_their_own():
    table = made_images(None)[0]
    n,test = len(table),table[table.part=='test']
    blocks = np.random.default_rng(1).integers(80, 170, (n,2,2,3), dtype=np.uint8).repeat(20, 1).repeat(20, 2)
    more,all_ = gain_beds._with_spoiled(table, blocks)
    assert more.iloc[:n].equals(table) and (all_[:n]==blocks).all() and all_.dtype==np.uint8 and len(more)==len(all_)==n+3*len(test)
    for k in ('blur','noise','jpeg'):
        part = more[more.part==k]
        assert part.name.tolist()==[f'{k}/{o}' for o in test.name] and part.label.tolist()==test.label.tolist()
    assert more.name.is_unique and set(more.part)=={'train','test','blur','noise','jpeg'}
    of = lambda k: all_[np.flatnonzero(more.part==k)].astype(float)
    for k in ('blur','noise','jpeg'): # each is nearest to its own photograph
        apart = np.abs(of(k)[:,None]-of('test')).mean((2,3,4))
        assert apart.argmin(1).tolist()==list(range(len(test))) and apart.min(1).all()
    noise = of('noise')-of('test')
    assert abs(noise.std()-25)<1 and abs(noise.mean())<1 and (noise[0]!=noise[1]).any() # another for each photograph
    steps = lambda k: np.abs(np.diff(of(k), axis=2)).max((1,2,3))
    assert (steps('blur')<.5*steps('test')).all() and np.abs(of('jpeg')-of('test')).mean()<10
    assert (gain_beds._with_spoiled(table, blocks)[1]==all_).all() # the same each time

def test_a_source_is_decoded_once_and_spoiled_where_it_is_photographs(tmp_path, monkeypatch):
    for o in ('made','ants'): monkeypatch.setitem(gain_beds.sources, o, made_images)
    plain,ants = (gain_beds.Pictures(gain_beds.taken(tmp_path, tmp_path, o)) for o in ('made','ants'))
    assert len(plain.table)==51 and len(ants.table)==51+3*15 and gain_beds.tests(plain).keys()=={'test'}
    assert set(gain_beds.tests(ants))=={'test','blur','noise','jpeg'} and ants.masks is None
    table,pixels,_ = made_images(None)
    name = table.name[40]
    assert (np.asarray(ants.image(name)).transpose(1,2,0)==pixels[40]).all() and ants.label(f'blur/{name}')==table.label[40]
    monkeypatch.setitem(gain_beds.sources, 'made', lambda data: 1/0)
    gain_beds.taken(tmp_path, tmp_path, 'made')

# what a fit with them costs

@pytest.fixture(scope='module')
def proxy_step():
    with warnings.catch_warnings(): return importlib.import_module('proxy_step') # which wants to hear no warnings

def test_whole_fits_of_other_recipes_stay_in_the_table(proxy_step, tmp_path, monkeypatch):
    file = tmp_path/'proxy_step.csv'
    def measured(*some):
        monkeypatch.setattr(proxy_step, 'rows', [])
        for part,case,ratio in some:
            proxy_step.note(part, case, ratio=ratio)
            proxy_step.keep_part(part, file)
        return {(o.part,o.case):o.ratio for o in pd.read_csv(file).itertuples()}
    measured(('loader','plain',1.), ('fit','snapmix, heat for nothing',1.1), ('fit','keep, heat for nothing',1.2), ('memory','growth',0.))
    assert measured(('fit','keep, heat for nothing',1.3), ('loader','20 % served',.9), ('step','exact',.4))=={
        ('fit','snapmix, heat for nothing'):1.1, ('fit','keep, heat for nothing'):1.3, ('loader','20 % served'):.9, ('step','exact'):.4,
        ('memory','growth'):0.} # a case of another part that was given up is gone

def test_images_of_an_epoch_are_those_that_are_trained_on(proxy_step):
    for drop,n in ((True,64), (False,90)):
        dl = DataLoader(list(range(90)), bs=32, drop_last=drop)
        assert proxy_step.images_of_an_epoch(dl)==sum(map(len, dl))==n
