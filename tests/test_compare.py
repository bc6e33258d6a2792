"Comparisons: equal work, paired numbers, and runs that can be stopped"
import json
import numpy as np, pandas as pd, pytest, torch
from scipy import stats
from fastai.callback.core import Callback
from fastai.torch_core import TensorImage
from fastai.vision.augment import RandomErasing
from proxy_attention.experiment.arms import *
from proxy_attention.data.beds import two_colours
from proxy_attention.experiment.compare import *
from proxy_attention.data.digits import bed_learner, test_sets

@pytest.fixture(scope='module')
def bed(tmp_path_factory): return two_colours(tmp_path_factory.mktemp('bed')/'bed', n_train=96, n_test=24)

@pytest.fixture
def make(bed): return lambda seed: bed_learner(bed, seed=seed, bs=16)

def table(values, tests=('plain',)):
    "A comparison from accuracies: arm -> one a seed"
    return pd.DataFrame([dict(arm=a, seed=s, test=t, accuracy=v, worst=v/2, steps=10)
                         for a,vs in values.items() for s,v in enumerate(vs) for t in tests])

def test_paired_differences_are_those_of_scipy():
    a,b = np.array([.9,.92,.88,.95,.91]), np.array([.85,.9,.86,.9,.91])
    row = Comparison(table({'no proxy':b, 'x':a})).stats().query("arm=='x' and test=='plain'").iloc[0]
    ours = stats.ttest_rel(a, b).confidence_interval(.95)
    assert np.allclose([row['diff'],row.lo,row.hi], [(a-b).mean(), ours.low, ours.high])

def test_pairs_are_of_the_same_seed():
    df = table({'no proxy':[.1,.5,.9], 'x':[.2,.6,1.]})
    shuffled = df.sample(frac=1, random_state=0)
    row = Comparison(shuffled).stats().query("arm=='x' and test=='plain'").iloc[0]
    # unpaired, the spread of the seeds would drown it
    assert np.isclose(row['diff'], .1) and not row.hi-row.lo>.01

@pytest.mark.parametrize('better,says', [
    ([.9,.91,.92,.9,.93],'helps'), ([.1,.11,.12,.1,.13],'harms'), ([.4,.6,.5,.45,.55],'no effect shown'),
    ([.6,.61,.59,.6,.6],'no spread'), ([.9,.91,.92,.9],'too few to tell'), ([.9,.91],'too few to tell'), ([.9],'too few to tell')])
def test_every_verdict_can_be_reached(better, says):
    cmp = Comparison(table({'no proxy':[.5,.51,.49,.5,.5][:len(better)], 'x':better}))
    assert f'x: {says} on plain' in cmp.verdict() and cmp.stats().query("arm=='x'").verdict.iloc[0]==says

@pytest.mark.parametrize('n', [1,2,3,4])
def test_fewer_than_five_seeds_are_too_few_to_tell(n):
    "The numbers are given all the same"
    v = np.array([.3,.31,.32,.33][:n])
    o = paired(v)
    assert o['verdict']=='too few to tell' and np.isclose(o['diff'], v.mean())
    if n==1: return
    ci = stats.ttest_1samp(v, 0).confidence_interval(.95)
    assert np.allclose([o['lo'],o['hi']], ci)
    said = Comparison(table({'no proxy':[.5]*n, 'x':.5+v}, ['plain'])).verdict()
    assert f'x: too few to tell on plain ({100*v.mean():+.1f} points, {100*ci.low:+.1f} to' in said
    assert 'helps' not in said and 'harms' not in said and 'no effect' not in said

@pytest.mark.parametrize('diff', [[.01]*3, [.01]*5, [-.2]*8, np.array([.2,.6,1.,.3,.7])-np.array([.1,.5,.9,.2,.6])])
def test_seeds_that_do_not_differ_are_no_evidence(diff):
    o = paired(diff)
    assert o['verdict']==('no spread' if len(diff)>4 else 'too few to tell') and np.isclose(o['diff'], np.mean(diff))
    assert np.isnan(o['lo']) and np.isnan(o['hi'])

def test_no_difference_in_any_seed_shows_no_effect():
    assert paired([0.]*6)['verdict']=='no effect shown'

@pytest.mark.parametrize('n,says', [(1000,'helps'), (100,'no effect shown')])
def test_a_difference_is_not_known_better_than_the_images_allow(n, says):
    "Of n images, the seeds are taken to spread by one image at least"
    base,mine = [.5]*5,[.51]*5 # one image of a hundred, ten of a thousand
    df = table({'no proxy':base, 'x':mine}, ['plain']).assign(n=n)
    row = Comparison(df).stats().query("arm=='x' and test=='plain'").iloc[0]
    half = stats.t.ppf(.975, 4)/n/5**.5
    assert np.allclose([row['diff'],row.lo,row.hi], [.01,.01-half,.01+half]) and row.verdict==says
    # a wider spread is left as it is
    a,b = np.array([.9,.92,.88,.95,.91]),np.array([.85,.9,.86,.9,.91])
    row = Comparison(table({'no proxy':b, 'x':a}, ['plain']).assign(n=n)).stats().query("arm=='x' and test=='plain'").iloc[0]
    assert np.allclose([row.lo,row.hi], stats.ttest_rel(a, b).confidence_interval(.95))

def test_intervals_are_clipped_to_what_is_possible():
    base,mine = [.1,.9,.5,.2,.4],[.95,.1,.9,.1,.99]
    wild = paired((np.array(mine)-base)*2)
    assert wild['hi']>1 and paired((np.array(mine)-base)*2, limit=1)['hi']==1
    cmp = Comparison(table({'no proxy':[.0,.1], 'x':[.99,.9]}, ['plain']))
    row = cmp.stats().query("arm=='x' and test=='plain'").iloc[0]
    assert row.hi==1 and np.isclose(row.lo, row['diff']-stats.t.ppf(.975, 1)*.19/2)
    assert '+100.0' in cmp.table().to_string() and '+100.0' in cmp.verdict()
    loss = Comparison(cmp.df.assign(loss=[9.,1.,0.,2.]))
    row = loss.stats('loss').query("arm=='x'").iloc[0]
    assert row.lo<-1 and row.hi>1 # a loss has no such bounds

def grouped(where):
    "Two arms, two tests, three groups; `where`: (arm, seed, test) → the group that is worst"
    recs = []
    for arm in ('no proxy','x'):
        for seed in range(5):
            tests = {}
            for t in ('plain','flipped'):
                groups = {g:.8+.01*seed for g in ('cat','dog','owl')}
                if (arm,seed,t) in where: groups[where[arm,seed,t]] = .2+.01*seed
                tests[t] = dict(n=300, accuracy=np.mean(list(groups.values())), loss=1., worst=min(groups.values()), groups=groups)
            recs.append(dict(arm=arm, seed=seed, steps=9, seconds=1., proxies=0, proxy_seconds=0., measures={}, notes=[], tests=tests))
    return Comparison.of(recs, 'no proxy')

def test_the_worst_group_is_named():
    where = {('no proxy',s,'flipped'):'dog' for s in range(5)}|{('x',s,'plain'):'owl' for s in range(4)}|{('x',4,'flipped'):'cat'}
    cmp = grouped(where)
    s = cmp.stats().set_index(['test','arm'])
    assert s.loc[('worst group','no proxy'),'which']=="'dog' of flipped"
    assert s.loc[('worst group','x'),'which']=="'owl' of plain (4 of 5 seeds)"
    assert pd.isna(s.loc[('plain','x'),'which'])
    for t in (cmp.table().to_string(), cmp.table(diff=False).to_string(), cmp.verdict()):
        assert "'dog' of flipped" in t and "'owl' of plain (4 of 5 seeds)" in t
    bare = Comparison(cmp.df.drop(columns='worst_group'))
    assert bare.stats().query("test=='worst group'").which.tolist()==['flipped','plain (4 of 5 seeds)']

def test_a_single_seed_has_no_verdict():
    cmp = Comparison(table({'no proxy':[.5], 'x':[.9]}))
    assert 'no verdict' in cmp.verdict() and 'x: too few to tell on plain (+40.0 points)' in cmp.verdict()
    assert 'helps' not in cmp.verdict() and '[' not in cmp.table().to_string()

def test_worst_group_is_the_lowest_of_all_tests():
    df = table({'no proxy':[.5,.5], 'x':[.9,.9]}, ('plain','flipped'))
    df.loc[(df.arm=='x')&(df.test=='flipped'),'worst'] = .3
    s = Comparison(df).stats().set_index(['test','arm'])
    assert s.loc[('worst group','x'),'mean']==.3 and s.loc[('worst group','no proxy'),'mean']==.25

def test_unequal_work_is_told():
    df = table({'no proxy':[.5,.5], 'x':[.9,.9]})
    df.loc[df.arm=='x','steps'] = 12
    assert 'Not the same number of steps: x 12' in Comparison(df).verdict()

def test_markup_in_names_stays_text():
    text = Comparison(table({'no proxy':[.5,.5], '<b>x</b>':[.9,.8]}))._repr_html_()
    assert '<b>' not in text

def test_accuracy_is_the_share_of_right_ones(bed, make):
    rec = run_arm(make, fit_plain, 'plain', 0, 2, 3e-3, test_sets(bed))
    for name,t in rec['tests'].items():
        about = pd.read_csv(bed/'about.csv')
        share = about[about.part==name].label.astype(str).value_counts(normalize=True)
        assert (np.isclose(sum(t['groups'][k]*share[k] for k in t['groups']), t['accuracy'])
                and t['worst']==min(t['groups'].values()) and t['n']==24)

def test_groups_of_your_own(bed, make):
    rec = run_arm(make, fit_plain, 'plain', 0, 2, 3e-3, dict(plain=bed/'plain'), groups=lambda f: f'even {int(f.stem)%2==0}')
    assert set(rec['tests']['plain']['groups'])=={'even True','even False'}

def test_all_the_ways_to_name_a_test_set_agree(bed, make):
    files = sorted((bed/'plain').rglob('*.png'))
    ways = dict(folder=bed/'plain', text=str(bed/'plain'), items=files,
                function=lambda learn: learn.dls.test_dl(files, with_labels=True))
    rec = run_arm(make, fit_plain, 'plain', 0, 2, 3e-3, ways)
    assert len({json.dumps(o) for o in rec['tests'].values()})==1

@pytest.mark.limit(200)
def test_processes_give_what_one_gives(bed, make):
    one,two = (compare(make, ('no proxy','shortcut'), 2, 2, test_sets(bed), n_jobs=n, bar=False) for n in (1,2))
    cols = ['arm','seed','test','accuracy','loss','steps','proxies']
    assert one.df[cols].equals(two.df[cols])

def test_what_is_there_is_not_trained_again(bed, make, tmp_path):
    trained = []
    def noted(learn, epochs, lr):
        trained.append(1)
        fit_plain(learn, epochs, lr)
    for seeds,n in ((2,2),(3,3),(3,3)):
        cmp = compare(make, {'no proxy':noted}, seeds, 2, folder=tmp_path, bar=False)
        assert len(trained)==n and cmp.df.seed.nunique()==seeds
    with pytest.raises(ValueError, match='another comparison .epochs=2 there, 3 here'):
        compare(make, {'no proxy':noted}, 3, 3, folder=tmp_path, bar=False)

def test_stopped_and_gone_on_with(bed, make, tmp_path):
    whole = compare(make, ('no proxy','cutout'), 2, 2, test_sets(bed), bar=False)
    class Stop(Callback):
        def after_epoch(self): raise KeyboardInterrupt
    def stops(seed):
        learn = make(seed)
        return learn.add_cb(Stop()) if seed==1 else learn
    with pytest.raises(KeyboardInterrupt): compare(stops, ('no proxy','cutout'), 2, 2, test_sets(bed), folder=tmp_path, bar=False)
    assert len(list(tmp_path.glob('*_*.json')))==2
    cmp = compare(make, ('no proxy','cutout'), 2, 2, test_sets(bed), folder=tmp_path, bar=False)
    assert cmp.df[['arm','seed','test','accuracy','loss']].equals(whole.df[['arm','seed','test','accuracy','loss']])
    assert Comparison.kept(tmp_path, ['no proxy','cutout']).df.equals(cmp.df)

def test_arms_that_start_apart_are_refused(bed):
    n = iter(range(100))
    with pytest.raises(ValueError, match='start from other weights'):
        compare(lambda seed: bed_learner(bed, seed=next(n)), ('no proxy','cutout'), 1, 2, bar=False)

@pytest.mark.parametrize('kw,says', [
    (dict(arms=('no proxy','shortcuts')), "did you mean 'shortcut'"), (dict(arms=('shortcut',)), "baseline 'no proxy' is not among"),
    (dict(seeds=[]), 'seeds='), (dict(seeds=[1,1]), 'seeds='),
    (dict(epochs=1), 'epochs=1'), (dict(test_dls=dict(a='nowhere/at/all')), 'holds no image')])
def test_refused(make, kw, says):
    with pytest.raises((ValueError,TypeError), match=says): compare(make, **(dict(seeds=1, epochs=2, bar=False)|kw))

def test_names_that_would_share_a_file(make, tmp_path):
    with pytest.raises(ValueError, match='kept in one file'):
        compare(make, {'a b':fit_plain, 'a/b':fit_plain}, baseline='a b', folder=tmp_path)

def test_what_a_run_warns_of_is_in_the_verdict(bed, make):
    cmp = compare(make, {'no proxy':fit_plain, 'none':with_proxies(select=lambda losses: [])}, 2, 2, bar=False)
    assert 'Note on none (2 of 2 seeds)' in cmp.verdict() and 'selection is empty' in cmp.verdict()

def test_upweighted_errors_are_drawn_more_often(bed, make):
    learn = make(0)
    with learn.no_bar(), learn.no_logging(): upweighted_errors(learn, 2, 1e-6)
    w = learn.dls.train.wgts
    assert np.isclose(w.sum(), 1) and set(np.round(w/w.min(), 6))<={1.,20.} and len(set(np.round(w/w.min(), 6)))==2
    assert len(learn.dls.train)==len(make(0).dls.train)

def test_cutout_takes_its_area(make):
    learn = make(0)
    with learn.no_bar(), learn.no_logging(): cutout(learn, 2, 1e-3, area=.1)
    erase = next(o for o in learn.dls.train.after_batch.fs if isinstance(o, RandomErasing))
    x = TensorImage(torch.zeros(32, 3, 40, 40))
    gone = (erase(x.clone(), split_idx=0)!=0).any(1)
    assert .06<gone.float().mean()<=.11 # the square may stand out of the image
    assert abs(gone.any(-1).sum(-1)-gone.any(-2).sum(-1)).float().median()<=1
    assert torch.equal(erase(x.clone(), split_idx=1), x)

def test_masktune_trains_its_last_epoch_on_masked_images_alone(bed, make):
    learn,rates = make(0),[]
    class Rates(Callback):
        def after_batch(self):
            if self.training: rates.append(self.opt.hypers[-1]['lr'])
    learn.add_cb(Rates())
    with learn.no_bar(), learn.no_logging(): arms['masktune'](learn, 4, 3e-3)
    n,hist = len(learn.dls.train), learn.proxy_attention.history
    assert list(hist.epoch)==[2] and np.allclose(rates[-n+1:], 1e-3) and rates[3*n-1]<rates[0]

def two_tests(plain, flipped):
    "Two arms: one as without proxies, one with these accuracies of each seed"
    rows = [dict(arm=a, seed=i, test=t, accuracy=v, worst=v, steps=10) for a,tests in dict(base=([.5]*len(plain),[.2]*len(plain)),
            mine=(plain,flipped)).items() for t,vs in zip(('plain','flipped'), tests) for i,v in enumerate(vs)]
    return Comparison(pd.DataFrame(rows), 'base')

@pytest.mark.parametrize('plain,flipped,told', [
    ([.6,.61,.62], [.7,.72,.71], True), ([.6,.61,.62], [.6,.61,.62], False),
    ([.6,.61,.62], [.63,.64,.65], False), # three points are not spoken of
    ([.6,.6,.6], [.5,.9,.7], False), ([.6], [.7], True), ([.7], [.1], False)])
def test_over_correction_is_told(plain, flipped, told):
    cmp = two_tests(plain, flipped)
    assert cmp.overcorrected().index.tolist()==['mine']*told
    assert ('Over-corrected: mine is' in cmp.verdict())==told

def test_without_such_test_sets_nothing_is_over_corrected():
    df = two_tests([.6,.6], [.9,.9]).df
    assert not len(Comparison(df[df.test=='plain'], 'base').overcorrected())
    other = Comparison(df.replace(dict(test=dict(plain='none', flipped='wrong'))), 'base')
    assert other.overcorrected('none', 'wrong').index.tolist()==['mine']
