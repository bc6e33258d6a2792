"Comparisons: equal work, paired numbers, and runs that can be stopped"
import json, os, shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
import numpy as np, pandas as pd, pytest, torch, warm
from scipy import stats
from fastai.callback.core import Callback
from fastai.torch_core import TensorImage
from fastai.vision.augment import RandomErasing
from proxy_attention.experiment.arms import *
from proxy_attention.core import ProxyWarning
from proxy_attention.data.beds import two_colours
from proxy_attention.experiment.compare import *
from proxy_attention.experiment.statistics import *
from proxy_attention.data.digits import bed_learner, test_sets
from proxy_attention.proxy.callback import ProxyAttention

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

def test_a_larger_loss_harms():
    cmp = Comparison(table({'no proxy':[.5,.52,.51,.49,.5], 'x':[.7,.73,.7,.69,.71]}, ['plain']))
    cmp = Comparison(cmp.df.assign(loss=1+cmp.df.accuracy))
    said = lambda metric: cmp.stats(metric).query("arm=='x' and test=='plain'").verdict.item()
    assert said('accuracy')=='helps' and said('loss')=='harms'

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

@pytest.mark.parametrize('what,says', [
    (lambda make: make(0), 'make_learner is of type Learner: give a function'),
    (lambda make: lambda: make(0), 'cannot be called with a seed'),
    (lambda make: 'resnet18', 'of type str'), (lambda make: lambda seed: make(seed).model, 'returned something of type Sequential')])
def test_what_makes_no_learner(make, what, says):
    with pytest.raises(TypeError, match=says): compare(what(make), ['no proxy'], [0], 2, bar=False)

def test_loaders_without_a_batch_are_not_compared(bed):
    with pytest.raises(ValueError, match='do not fill a batch of 1000'):
        compare(lambda seed: bed_learner(bed, seed=seed, bs=1000), ['no proxy'], [0], 2, bar=False)

def test_methods_that_fastai_adds_by_an_import_are_there_in_each_process(bed):
    "A function of a notebook is sent to the processes as code, without the imports above it"
    import fastai.callback.channelslast # adds `to_channelslast`
    notebook = dict(bed=bed, bed_learner=bed_learner, __name__='__main__')
    exec('def make(seed): return bed_learner(bed, seed=seed, bs=16).to_channelslast()', notebook)
    res = compare(notebook['make'], ['no proxy'], [0,1], 2, bar=False, n_jobs=2)
    assert len(res.df)==2 and res.df.accuracy.notna().all()

def test_what_is_there_is_not_trained_again(bed, make, tmp_path):
    noted,trained = noting(tmp_path)
    for seeds,n in ((2,2),(3,3),(3,3),(2,3)):
        cmp = compare(make, {'no proxy':noted}, seeds, 2, folder=tmp_path/'runs', bar=False)
        assert trained()==n and cmp.df.seed.nunique()==seeds
    cmp = compare(make, {'no proxy':noted, 'cutout':cutout}, 2, 2, folder=tmp_path/'runs', bar=False)
    assert trained()==3 and cmp.arms==['no proxy','cutout']

def test_stored_arms_that_began_apart_are_refused_for_every_seed(bed, make, tmp_path):
    "Their records may be there already, for example from two processes"
    compare(make, ('no proxy','one cycle'), 2, 2, folder=tmp_path/'runs', bar=False)
    f = tmp_path/'runs'/'one_cycle_1.json'
    f.write_text(json.dumps(json.loads(f.read_text())|dict(start='another')))
    with pytest.raises(ValueError, match="With seed 1 the arms 'no proxy' and 'one cycle' start from other weights"):
        compare(make, ('no proxy','one cycle'), 2, 2, folder=tmp_path/'runs', bar=False)

def noting(tmp_path):
    "An arm that leaves a line in a file for each training, and how many there are"
    file = str(tmp_path/'trained')
    def noted(learn, epochs, lr):
        with open(file, 'a') as f: f.write('x')
        fit_plain(learn, epochs, lr)
    return noted,lambda: len(open(file).read()) if os.path.exists(file) else 0

def other_arm(learn, epochs, lr): fit_plain(learn, epochs, lr/2)

@pytest.fixture(scope='module')
def there(bed, tmp_path_factory):
    "The folder of a comparison"
    d = tmp_path_factory.mktemp('there')/'runs'
    arms = {'no proxy':fit_plain, 'mine':cutout}
    compare(lambda seed: bed_learner(bed, seed=seed, bs=16), arms, 1, 2, test_sets(bed), folder=d, bar=False)
    return d

def other_net(bed, seed):
    learn = bed_learner(bed, seed=seed, bs=16)
    learn.model = torch.nn.Sequential(*learn.model[:-1], torch.nn.Dropout(.2), learn.model[-1])
    return learn

def other_weights(bed, seed):
    learn = bed_learner(bed, seed=seed, bs=16)
    with torch.no_grad(): learn.model[-1].bias += 1
    return learn

@pytest.mark.parametrize('kw,says', [
    (dict(epochs=3), 'contains another comparison. Fit, epochs: 2 there, 3 here'), (dict(lr=1e-3), 'Fit, lr: 0.003 there, 0.001 here'),
    (dict(freeze_epochs=2), 'Fit, freeze_epochs'),
    (dict(arms={'no proxy':fit_plain, 'mine':other_arm}), "contains results of another arm with the name 'mine'. Name: "),
    (dict(arms={'no proxy':fit_plain, 'mine':with_proxies('late')}), "contains results of another arm with the name 'mine'"),
    (dict(make='net'), 'another comparison. Learner, network'),
    (dict(make='weights'), 'a network with other initial weights for seed 0'),
    (dict(make='bs'), 'Learner, batch size: 16 there, 8 here'), (dict(make='images'), 'Learner, training images, '),
    (dict(make='tfms'), 'Learner, transforms'),
    (dict(test='images'), "on another test set with the name 'plain'. Number: 24 there, 23 here"),
    (dict(groups=lambda f: 'a'), 'another comparison. Groups: absent there'),
    (dict(measure=lambda learn: {}), 'another comparison. Measure')])
def test_another_experiment_is_refused(bed, there, tmp_path, kw, says):
    "A folder never gives the results of something else"
    fewer = Path(shutil.copytree(bed, tmp_path/'fewer'))
    for part in ('train','plain'): next((fewer/part).rglob('*.png')).unlink()
    make = dict(
        net=lambda seed: other_net(bed, seed), weights=lambda seed: other_weights(bed, seed),
        bs=lambda seed: bed_learner(bed, seed=seed, bs=8),
        images=lambda seed: bed_learner(fewer, seed=seed, bs=16), tfms=lambda seed: erased(bed_learner(bed, seed=seed, bs=16)))
    tests = test_sets(bed)|({'plain':fewer/'plain'} if kw.pop('test', None) else {})
    usual = dict(arms={'no proxy':fit_plain, 'mine':cutout}, seeds=1, epochs=2, test_dls=tests, folder=there, bar=False)
    before = {f:f.read_bytes() for f in there.iterdir()}
    with pytest.raises(ValueError, match=says):
        compare(make.get(kw.pop('make', None), lambda seed: bed_learner(bed, seed=seed, bs=16)), **(usual|kw))
    assert {f:f.read_bytes() for f in there.iterdir()}==before

def erased(learn):
    learn.dls.train.after_batch.add(RandomErasing())
    return learn

def test_other_releases_are_refused(make, there, bed, monkeypatch):
    monkeypatch.setattr('proxy_attention.experiment.compare.versions', lambda: dict(torch='0.1'))
    with pytest.raises(ValueError, match='Versions, python'):
        compare(make, {'no proxy':fit_plain}, 1, 2, test_sets(bed), folder=there, bar=False)

def test_a_folder_of_an_earlier_release_is_refused(make, tmp_path):
    (tmp_path/'comparison.json').write_text('{"epochs": 2}')
    with pytest.raises(ValueError, match='from an earlier release'): compare(make, 'no proxy', 1, 2, folder=tmp_path, bar=False)

def test_a_bed_that_each_seed_draws_anew(tmp_path):
    "A folder is gone on with, from any seed; another bed under the same names is refused, also where only one seed tells"
    drawn = {}
    def make(seed, other=()):
        k = seed,seed in other
        if k not in drawn:
            drawn[k] = two_colours(tmp_path/f'bed{k}', seed=seed+10*k[1], n_train=32, n_test=8)
        return bed_learner(drawn[k], seed=seed, bs=16)
    noted,trained = noting(tmp_path)
    tests = dict(plain=lambda learn: learn.dls.test_dl(sorted((learn.dls.path/'plain').rglob('*.png')), with_labels=True))
    ask = lambda seeds, make=make: compare(make, {'no proxy':noted}, seeds, 2, tests, folder=tmp_path/'runs', bar=False)
    one = ask([1,2])
    assert ask([1,2]).df.equals(one.df) and ask([2]).df.seed.tolist()==[2] and trained()==2
    assert ask([3,2]).df.seed.tolist()==[3,2] and trained()==3
    for seeds,other,says in (([1,2],{1},'another comparison'), ([2],{1},'another comparison'), ([1,2],{2},'on another test set'),
                             ([2],{2},'on another test set')):
        with pytest.raises(ValueError, match=says): ask(seeds, lambda seed: make(seed, other))
    assert trained()==3

@pytest.mark.parametrize('name', ['comparison','no_proxy_0'])
def test_a_damaged_file_is_named(make, bed, there, tmp_path, name):
    d = Path(shutil.copytree(there, tmp_path/'runs'))
    (d/f'{name}.json').write_text('{"arm": ')
    with pytest.raises(ValueError, match=f'{name}.json is damaged .* remove it'):
        compare(make, {'no proxy':fit_plain}, 1, 2, test_sets(bed), folder=d, bar=False)

@pytest.mark.parametrize('keep', [False,True])
def test_a_test_set_is_added(bed, make, tmp_path, keep):
    (noted,trained),tests = noting(tmp_path),test_sets(bed)
    ask = lambda *names, **kw: compare(
        make, {'no proxy':noted}, 2, 2, {k:tests[k] for k in names}, folder=tmp_path/'runs', bar=False, **kw)
    ask('plain', keep_models=keep)
    if keep: grown = ask('plain','flipped')
    else:
        with pytest.warns(ProxyWarning, match='2 of 2 runs have no saved weights, and are trained again'): grown = ask('plain','flipped')
    assert trained()==(2 if keep else 4)
    whole = compare(make, {'no proxy':fit_plain}, 2, 2, {k:tests[k] for k in ('plain','flipped')}, bar=False)
    cols = ['seed','test','accuracy','loss','worst']
    assert grown.df[cols].equals(whole.df[cols])
    assert ask('flipped').tests==['flipped'] and trained()==(2 if keep else 4), 'a test set may be left out, and nothing is trained'

def test_what_each_image_came_to_is_kept(bed, make, there):
    rec = json.loads((there/'no_proxy_0.json').read_text())
    for k,path in test_sets(bed).items():
        t = rec['tests'][k]
        right = np.unpackbits(np.frombuffer(bytes.fromhex(t['right']), np.uint8), count=t['n'])
        assert np.isclose(right.mean(), t['accuracy'])
        labels = [f.parent.name for f in sorted(Path(path).rglob('*.png'))]
        assert {g:right[np.array(labels)==g].mean() for g in set(labels)}==pytest.approx(t['groups'])

def share(bed, folder):
    "One of two processes; a line in a file for each run that it trains"
    def noted(learn, epochs, lr):
        with open(folder/'trained', 'a') as f: f.write('x')
        fit_plain(learn, epochs, lr)
    cmp = compare(lambda seed: bed_learner(bed, seed=seed, bs=16), {'no proxy':noted, 'b':noted}, 3, 2, folder=folder/'runs', bar=False)
    print(cmp.df[['arm','seed','accuracy']].to_csv(index=False))

@pytest.mark.limit(200)
def test_two_processes_share_a_folder(bed, tmp_path):
    "Each run is trained once, and both tables are whole"
    with ThreadPoolExecutor(2) as ex: both = list(ex.map(lambda _: warm.run(share, bed, tmp_path), range(2)))
    one,two = (o.stdout.partition('arm,')[2] for o in both)
    assert one==two and one.count('no proxy')==3 and (tmp_path/'trained').read_text()=='x'*6
    assert not list((tmp_path/'runs').glob('*_*.lock'))

def test_a_killed_process_lets_go(bed, make, there, tmp_path):
    "Its lock vanishes with it, even if its file stays"
    d = Path(shutil.copytree(there, tmp_path/'runs'))
    (d/'no_proxy_0.json').unlink()
    (d/'no_proxy_0.json.lock').write_text('')
    cmp = compare(make, {'no proxy':fit_plain}, 1, 2, test_sets(bed), folder=d, bar=False)
    assert cmp.df.equals(Comparison.kept(there, ['no proxy']).df.assign(seconds=cmp.df.seconds))

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
    (dict(epochs=1), 'epochs=1'), (dict(test_dls=dict(a='nowhere/at/all')), 'contains no image')])
def test_refused(make, kw, says):
    with pytest.raises((ValueError,TypeError), match=says): compare(make, **(dict(seeds=1, epochs=2, bar=False)|kw))

def test_names_that_would_share_a_file(make, tmp_path):
    with pytest.raises(ValueError, match='saved in the same file'):
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
    class Erasing(Callback):
        def before_train(self): self.found = [o for o in self.dls.train.after_batch.fs if isinstance(o, RandomErasing)]
    learn.add_cb(Erasing())
    with learn.no_bar(), learn.no_logging(): cutout(learn, 2, 1e-3, area=.1)
    erase, = learn.erasing.found
    x = TensorImage(torch.zeros(32, 3, 40, 40))
    gone = (erase(x.clone(), split_idx=0)!=0).any(1)
    assert .06<gone.float().mean()<=.11 # the square may stand out of the image
    assert abs(gone.any(-1).sum(-1)-gone.any(-2).sum(-1)).float().median()<=1
    assert torch.equal(erase(x.clone(), split_idx=1), x)

def test_loaders_that_all_arms_share_are_as_before_after_each_arm(make, bed):
    "Cutout once left its transform there, so that the arms after it were trained with it"
    dls = make(0).dls
    def shared(seed):
        learn = make(seed)
        learn.dls = dls
        return learn
    before = list(dls.train.after_batch.fs)
    cmp = compare(shared, ('no proxy','cutout','one cycle'), 1, 2, bar=False)
    assert cmp.arms==['no proxy','cutout','one cycle'] and list(dls.train.after_batch.fs)==before

def test_masktune_trains_its_last_epoch_on_masked_images_alone(bed, make):
    learn,rates = make(0),[]
    class Rates(Callback):
        def after_batch(self):
            if self.training: rates.append(self.opt.hypers[-1]['lr'])
    learn.add_cb(Rates())
    with learn.no_bar(), learn.no_logging(): arms['masktune'](learn, 4, 3e-3)
    n,hist = len(learn.dls.train), learn.proxy_attention.history
    assert list(hist.epoch)==[2] and np.allclose(rates[-n+1:], 1e-3) and rates[3*n-1]<rates[0]

def test_a_plot_has_the_unit_of_its_metric():
    "Fractions are in percent; seconds, losses and numbers of images are not"
    df = table({'no proxy':[.5,.6], 'mine':[.7,.8]}).assign(seconds=30., loss=.4, proxies=[0,0,9,9])
    cmp = Comparison(df)
    for metric,label,first in ((None,'accuracy, %',50), ('seconds','seconds',30), ('loss','loss',.4), ('proxies','proxies',0)):
        ax = cmp.plot(metric)[0]
        assert ax.get_xlabel()==label and ax.lines[0].get_xdata()[0]==pytest.approx(first)

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

def test_own_functions_stand_beside_names(make):
    "In a list or in a dictionary; the results are those of the function and of the shipped arm"
    def mine(learn, epochs, lr): learn.fit(epochs, lr)
    listed = compare(make, ['no proxy', mine], seeds=1, epochs=2, bar=False)
    named = compare(make, {'no proxy':'no proxy', 'mine':mine}, seeds=1, epochs=2, bar=False)
    assert listed.arms==named.arms==['no proxy','mine']
    assert listed.df.accuracy.tolist()==named.df.accuracy.tolist()
    shipped = compare(make, ['no proxy'], seeds=1, epochs=2, bar=False)
    assert shipped.df.accuracy[0]==named.df.accuracy[0]

@pytest.mark.parametrize('arms,says', [
    ({'no proxy':'no proxy', 'mine':3}, "The arm 'mine' is of type int"),
    ({'no proxy':'no proxy', 'mine':lambda learn: None}, "The arm 'mine' is a function that cannot be called as an arm"),
    ({'no proxy':'no proxy', 'mine':'shortcuts'}, "did you mean 'shortcut'?"),
    (['no proxy', lambda *o: None, lambda *o: 1], 'have the same name: give a dictionary'),
    ({'mine':lambda *o: None}, 'Add it, or name one of them as the `baseline`')])
def test_what_is_no_arm_is_refused_before_anything_is_made(arms, says):
    def never(seed): raise AssertionError('a learner was made')
    with pytest.raises((TypeError,ValueError)) as e: compare(never, arms, seeds=1, epochs=2)
    assert says in str(e.value)

def test_rates_of_upweighted_errors(make):
    "As fastai takes them"
    for lr in (slice(1e-3), slice(1e-4,1e-3), None):
        learn = make(0)
        with learn.no_bar(), learn.no_logging(): upweighted_errors(learn, 2, lr)
    with pytest.raises(ValueError, match='epochs=1 should be 2 or more'): upweighted_errors(make(0), 1, 1e-3)

def test_a_callback_is_no_arm():
    with pytest.raises(TypeError, match='needs a callback of its own: give the recipe and its arguments'):
        with_proxies(ProxyAttention(area=.2))

def test_names_that_a_table_has_already_are_refused(make, tmp_path):
    for k in ('accuracy','steps','arm'):
        with pytest.raises(ValueError, match=f'returned {k}, which every comparison has already'):
            compare(make, ['no proxy'], 1, 2, measure=lambda learn: {k:1.}, folder=tmp_path/k, bar=False)
        assert not [*(tmp_path/k).glob('*_*.json')]
    never = lambda seed: pytest.fail('a learner was made')
    with pytest.raises(ValueError, match="can be called 'worst group'"): compare(never, ['no proxy'], 1, 2, {'worst group':[]})
    with pytest.raises(ValueError, match='has no test set'): compare(never, ['no proxy'], 1, 2, {})

def test_two_comparisons_that_begin_at_the_same_time_are_not_mixed(make, tmp_path):
    "The second finds the identity that the first has saved meanwhile"
    begun = []
    def late(seed):
        learn = make(seed)
        if not begun:
            begun.append(True)
            compare(make, ['no proxy'], 1, 2, lr=1e-3, folder=tmp_path/'cmp', bar=False)
        return learn
    with pytest.raises(ValueError, match='contains another comparison'):
        compare(late, ['no proxy'], 1, 2, lr=1e-1, folder=tmp_path/'cmp', bar=False)
