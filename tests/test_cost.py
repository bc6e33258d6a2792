"What an arm costs beside the baseline: steps, seconds, images that it trains on, and images that it only looks at"
import json
import numpy as np, pandas as pd, pytest, torch
from fastai.learner import Learner
from proxy_attention.attribution.methods import Suspect
from proxy_attention.data.beds import two_colours
from proxy_attention.data.digits import bed_learner
from proxy_attention.experiment.arms import find_arm, fit_plain, with_proxies
from proxy_attention.experiment.compare import run_arm
from proxy_attention.experiment.statistics import Comparison
from proxy_attention.proxy.losses import interpret_train
from proxy_attention.proxy.successor import IfCarried

BS = 16

@pytest.fixture(scope='module')
def bed(tmp_path_factory): return two_colours(tmp_path_factory.mktemp('bed')/'bed', n_train=96, n_test=8)

@pytest.fixture
def make(bed): return lambda seed: bed_learner(bed, seed=seed, bs=BS)

@pytest.fixture
def work(make):
    "Steps, images trained on and images only looked at, of two epochs of an arm"
    def f(arm, epochs=2):
        rec = run_arm(make, arm, 'x', 0, epochs, 1e-2, {})
        return rec['steps'],rec['trained'],rec['looked']
    return f

@pytest.fixture
def plain(make):
    "What two epochs take, and how many training images there are"
    dl = make(0).dls.train
    return 2*len(dl),2*len(dl)*BS,len(dl.dataset)

def flat(xb, yb): # heat that asks no network
    return torch.linspace(0, 1, 64).view(1,8,8).expand(len(xb),-1,-1)

# ---- what is counted

def test_a_plain_fit_looks_at_nothing(work, plain): assert work(fit_plain)==(*plain[:2],0)

def proxies(**kw): return with_proxies(**(dict(select='all', steps=[1,'p',1], p=1.)|kw))

def test_losses_are_a_look_at_each_training_image(work, plain):
    "An exact pass over the training set, losses that the epoch itself has met are free; and a few images with which things are checked"
    steps,trained,n = plain
    for losses,all_ in (('exact',n),('running',0)):
        got = work(proxies(attribution=flat, losses=losses))
        assert got[:2]==(steps,trained) and all_<=got[2]<=all_+4, got

def test_heat_is_a_look_at_each_chosen_image(work, plain):
    "Beside what finding the layer takes, of one batch"
    steps,trained,n = plain
    for share,chosen in ((8,8),(40,40)):
        got = work(proxies(select='top_losses', share=share, losses='running', attribution='GradCAM'))
        assert got[:2]==(steps,trained) and chosen<=got[2]<=chosen+2*BS, got

def test_all_that_a_method_runs_through_the_network_is_looked_at(work, plain):
    "Occlusion sees each image many times"
    assert work(proxies(select='random', share=4, losses='running', attribution='Occlusion'))[2]>20*4

def test_what_another_network_looks_at_is_counted(make, work, plain):
    suspect = Suspect(make(1), 'GradCAM')
    steps,trained,n = plain
    got = work(proxies(attribution=suspect, losses='running'))
    assert got[:2]==(steps,trained) and n<=got[2]<=n+2*BS, got
    assert not suspect.model._forward_pre_hooks

def test_a_suspect_is_trained(work, plain):
    "Its fit is training, its heat is looking"
    steps,trained,_ = plain
    twice = work(with_proxies('rehearsed', steps=[1,'p',1], select='all'))
    assert twice[:2]==(2*steps,2*trained) and twice[2]>0, twice

def test_what_a_probe_asks_is_looked_at(work, plain):
    steps,trained,_ = plain
    once = work(with_proxies('rehearsed', steps=IfCarried(n=32)))
    assert once[0] in (steps,2*steps) and once[1]==trained*once[0]//steps and once[2]>=32, once

def test_a_last_layer_that_is_fitted_trains_nothing_more(work, plain):
    def arm(learn, epochs, lr):
        fit_plain(learn, epochs, lr)
        Learner.fit_head(learn, None, passes=3)
    steps,trained,_ = plain
    assert work(arm)[:2]==(steps,trained) and work(arm)[2]>=3*trained//2

def test_a_network_may_be_called_by_name(work, plain):
    "By somebody's own function for heat, say"
    def arm(learn, epochs, lr):
        fit_plain(learn, epochs, lr)
        with torch.no_grad(): learn.model(input=torch.zeros(5,3,40,40))
    assert work(arm)==(*plain[:2],5)

def test_validation_is_neither_and_a_pass_after_the_fit_is_a_look(work, plain):
    def arm(learn, epochs, lr):
        fit_plain(learn, epochs, lr)
        interpret_train(learn)
    *most,looked = work(arm)
    assert tuple(most)==plain[:2] and plain[2]<=looked<=plain[2]+4, looked

def test_nothing_stays_on_the_learner(make):
    seen = []
    def arm(learn, epochs, lr):
        seen.append((learn, len(learn.model._forward_pre_hooks)))
        fit_plain(learn, epochs, lr)
        if len(seen)>1: raise ZeroDivisionError()
    run_arm(make, arm, 'x', 0, 2, 1e-2, {})
    with pytest.raises(ZeroDivisionError): run_arm(make, arm, 'x', 0, 2, 1e-2, {})
    for learn,hooks in seen: assert hooks==1 and not learn.model._forward_pre_hooks and len(learn.cbs)==len(make(0).cbs)

# ---- what is told of it

def compared(**arms):
    "(steps, seconds, trained, looked) of each seed of an arm, the baseline first"
    return Comparison(pd.DataFrame([
        dict(arm=a, seed=i, test=t, accuracy=.5+.01*i, worst=.4, **dict(zip(('steps','seconds','trained','looked'), o)))
        for a,seeds in arms.items() for i,o in enumerate(seeds) for t in ('plain','flipped')]), list(arms)[0])

def test_times_are_those_of_the_same_seed():
    cmp = compared(base=[(10,2.,300,0), (10,4.,300,0)], x=[(10,3.,300,90), (10,4.,300,0)])
    c = cmp.cost()
    assert c.loc['x',['steps','seconds','trained','looked']].tolist()==[10,3.5,300,45]
    assert np.allclose(c.times_steps, [1,1.05]) and np.allclose(c.times_seconds, [1,1.25])
    less = Comparison(cmp.df[(cmp.df.arm=='base')|(cmp.df.seed==0)], 'base').cost()
    assert np.isclose(less.loc['x','times_seconds'], 1.5) and np.isclose(less.loc['x','times_steps'], 1.1)

def test_the_table_has_two_columns():
    t = compared(base=[(10,2.,300,0)]*2, x=[(10,2.5,300,63)]*2).table()
    assert t['cost'].to_dict('list')=={'in steps':['10','1.07 ×'], 'in seconds':['2 s','1.25 ×']}
    flat = compared(base=[(10,2.,300,0)]*2, x=[(10,2.5,300,63)]*2).table(diff=False)
    assert list(flat.columns)[-2:]==['cost in steps','cost in seconds'] and flat.loc['x','cost in steps']=='1.07 ×'

@pytest.mark.parametrize('seeds,said', [
    ([(10,2.1,300,60)]*2, None), # 1.07 and 1.05
    ([(10,2.1,300,300)]*2, 'x takes 1.33 × the steps.'),
    ([(10,3.,300,0)]*2, 'x takes 1.50 × the seconds.'),
    ([(10,3.,300,300)]*2, 'x takes 1.33 × the steps and 1.50 × the seconds.'),
    ([(10,9.,300,0), (10,2.,300,0)], None), # one seed of two: a slow machine
    ([(10,1.,150,0)]*2, None)])
def test_noticeably_more_is_in_the_verdict(seeds, said):
    cmp = compared(base=[(10,2.,300,0)]*2, x=seeds)
    lines = [o for o in cmp.verdict().splitlines() if o.startswith('More costly')]
    assert [o.partition(' (')[0] for o in lines]==([] if said is None else [f"More costly than 'base': {said}"])
    assert ('counts as a third' in cmp.verdict())==(said is not None and 'steps' in said)

def test_records_of_earlier_releases_are_read():
    "They have no counts: nobody knows how many times the steps it is, and the seconds are there"
    recs = [dict(arm=a, seed=s, steps=9, seconds=t, proxies=0, proxy_seconds=0., measures={}, notes=[],
        tests=dict(plain=dict(n=10, accuracy=.5, loss=1., worst=.5, groups=dict(all=.5)))) for a,t in (('base',2.),('x',3.)) for s in (0,1)]
    cmp = Comparison.of(json.loads(json.dumps(recs)), 'base')
    assert cmp.df[['trained','looked']].isna().all(None)
    assert cmp.table()['cost'].to_dict('list')=={'in steps':['9',''], 'in seconds':['2 s','1.50 ×']}
    assert 'the steps' not in cmp.verdict() and '1.50 × the seconds' in cmp.verdict()
    new = Comparison.of([*recs[:2], *({**o, 'trained':90, 'looked':30} for o in recs[2:])], 'base')
    assert new.table()['cost','in steps'].tolist()==['9',''], 'what the baseline looked at is not known'

def test_a_table_without_cost_has_no_such_columns():
    df = compared(base=[(10,2.,300,0)]*2, x=[(10,2.5,300,60)]*2).df
    def heads(*gone): return list(Comparison(df.drop(columns=list(gone)), 'base').table()['cost'].columns)
    assert heads('looked')==['in seconds'] and heads('seconds')==['in steps']
    assert 'cost' not in Comparison(df.drop(columns=['looked','trained','seconds']), 'base').table()

def test_a_fit_without_time_is_no_infinity():
    c = compared(base=[(0,0.,0,0)], x=[(10,2.,300,0)]).cost()
    assert c[['times_steps','times_seconds']].isna().all(None)

def test_the_raw_numbers_are_columns(make):
    cmp = Comparison.of([run_arm(make, find_arm(o), o, 0, 2, 1e-3, dict(valid=lambda learn: learn.dls.valid))
        for o in ('no proxy','more steps')], 'no proxy')
    d = cmp.df.set_index('arm')
    assert d.trained['more steps']==1.5*d.trained['no proxy'] and (d.looked==0).all()
    assert cmp.table()['cost','in steps']['more steps']=='1.50 ×' and '1.50 × the steps' in cmp.verdict()
