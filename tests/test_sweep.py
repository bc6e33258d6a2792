"Sweeps that are shared, killed and gone on with; no study is taken for another; failures kept, wrong words refused"
import json, multiprocessing, os, shutil, signal, sqlite3, sys, time
import optuna, pytest
from fastai.test_utils import synth_learner
from fastai.vision.all import *
from optuna.storages import RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalStorage
from proxy_attention.all import *
from proxy_attention.cli import CliError, proxy_sweep
from proxy_attention.data.beds import two_digits
import proxy_attention.experiment.sweep as s
from proxy_attention.experiment.config import Config, changed, to_toml
from proxy_attention.experiment.runs import finished, run_state
from proxy_attention.experiment.sweep import Sweep, folder_run, read_space, read_sweep, samplers, sweep_folder

pytestmark = [pytest.mark.filterwarnings('ignore'), pytest.mark.limit(170)]
ctx = multiprocessing.get_context('fork')

def quick(folder, a=0., b='x'):
    "Writes down that it ran"
    with open(folder/'ran', 'a') as f: f.write(f'{os.getpid()} {a} {b}\n')
    return dict(accuracy=1-(a-.3)**2, valid_loss=(a-.3)**2)

def slow(folder, a, b='x'):
    time.sleep(.1)
    return quick(folder, a, b)

def ran(folder): return {o.parent.name:o.read_text().splitlines() for o in sorted(folder.glob('trial_*/ran'))}
def started(f, *args):
    p = ctx.Process(target=f, args=args)
    p.start()
    return p
def until(f):
    while not f(): time.sleep(.005)
def beating(folder):
    "A database whose trials are known to be dead after two seconds, and not after a minute"
    return RDBStorage(f'sqlite:///{folder}/db', heartbeat_interval=1, grace_period=2)

grid = dict(a=[.1,.2,.3], b=['x','y'])
ab = {(a,b) for a in grid['a'] for b in grid['b']}
tiny = dict(arch='test_resnet', pretrained=False, size=16, workers=0, steps='1,p,1', share=.5, bs=32)

@pytest.fixture
def photos(tmp_path): return digits(tmp_path/'digits', n=60)/'train'

def test_a_finished_trial_leaves_no_checkpoint_of_any_fold(photos, tmp_path):
    "They are several times the size of the networks"
    run = folder_run(photos, folds=2, **tiny)
    (tmp_path/'trial').mkdir()
    assert run(tmp_path/'trial')['valid_loss']>0
    kept = {o.parts[-3]:o.name for o in tmp_path.glob('trial/**/checkpoints/*.pth')}
    assert kept==dict(fold_0='best.pth', fold_1='best.pth')

# ---- shared, killed, gone on with

@pytest.mark.parametrize('url', [None, 'sqlite:///{}/db'])
def test_two_processes_run_every_point_once(tmp_path, url):
    url = url and url.format(tmp_path)
    ps = [started(lambda: Sweep(slow, grid, tmp_path/'s', 'grid', storage=url).go(quiet=True)) for _ in range(2)]
    for p in ps: p.join()
    assert [p.exitcode for p in ps]==[0,0]
    df = read_sweep(tmp_path/'s', url).df
    assert set(df.state)=={'complete'} and df.trial.tolist()==list(range(6)) and {(o.a, o.b) for o in df.itertuples()}==ab
    lines = ran(tmp_path/'s')
    assert all(len(o)==1 for o in lines.values()) and len({o[0].split()[0] for o in lines.values()})==2
    assert (tmp_path/'s'/'study.db').exists()==(url is None)

def test_the_number_of_trials_is_exact_and_none_is_drawn_twice(tmp_path):
    space = dict(a=(0.,1.), b=['x','y'])
    ps = [started(lambda: Sweep(slow, space, tmp_path/'two', 'random').go(7, quiet=True)) for _ in range(2)]
    for p in ps: p.join()
    df = read_sweep(tmp_path/'two').df
    assert len(df)==7 and df.a.nunique()==7
    assert len(Sweep(slow, space, tmp_path/'two', 'random').go(3, quiet=True).df)==7 # fewer: nothing to do

@pytest.mark.parametrize('sampler', ['random','tpe'])
def test_a_seed_draws_the_same_again_also_in_two_goes(tmp_path, sampler):
    def drawn(name, *goes, seed=0):
        for n in goes: Sweep(quick, dict(a=(0.,1.)), tmp_path/name, sampler, seed=seed).go(n, quiet=True)
        return read_sweep(tmp_path/name).df.a.tolist()
    one = drawn('one', 4)
    assert drawn('again', 2, 4)==one and len(set(one))==4 and drawn('other', 4, seed=1)!=one

def hangs(folder, a, b='x'):
    if folder.name=='trial_0002' and not (folder/'hung').exists():
        (folder/'hung').write_text(f'{a} {b}')
        time.sleep(60)
    return quick(folder, a, b)

@pytest.mark.parametrize('sampler', ['grid','random'])
def test_kill_9_loses_nothing(tmp_path, sampler):
    space = grid if sampler=='grid' else dict(a=(0.,1.), b=['x','y'])
    def work(n): return Sweep(hangs, space, tmp_path/'s', sampler, storage=beating(tmp_path)).go(n, quiet=True)
    p = started(work, 6)
    until((tmp_path/'s'/'trial_0002'/'hung').exists)
    assert work(4)._done('complete')==3 # it is alive: its trial is left to it
    os.kill(p.pid, signal.SIGKILL)
    p.join()
    sweep = work(6)
    df = sweep.df
    assert len(df)==6 and set(df.state)=={'complete'} and len(df[['a','b']].drop_duplicates())==6
    row = df[df.trial==2].iloc[0]
    assert f'{row.a} {row.b}'==(tmp_path/'s'/'trial_0002'/'hung').read_text() # the same parameters, in the same folder
    assert all(len(o)==1 for o in ran(tmp_path/'s').values())
    assert [t.state.name for t in sweep.study.trials].count('FAIL')==1 and sweep.summary['failed']==0

def test_ctrl_c_and_the_same_goes_on(tmp_path):
    def stops(folder, a, b):
        if folder.name=='trial_0002' and not (folder/'was').exists():
            (folder/'was').write_text(f'{a} {b}')
            raise KeyboardInterrupt
        return quick(folder, a, b)
    with pytest.raises(KeyboardInterrupt, match='same command again to resume'): Sweep(stops, grid, tmp_path/'s', 'grid').go(quiet=True)
    assert ran(tmp_path/'s').keys()=={'trial_0000','trial_0001'}
    df = Sweep(stops, grid, tmp_path/'s', 'grid').go(quiet=True).df
    assert {(o.a, o.b) for o in df.itertuples()}==ab and len(df)==6 and set(df.state)=={'complete'}
    assert f'{df.a[2]} {df.b[2]}'==(tmp_path/'s'/'trial_0002'/'was').read_text()

def test_a_trial_without_heartbeat_is_freed_by_hand(tmp_path):
    def journal(): return JournalStorage(JournalFileBackend(str(tmp_path/'journal')))
    sweep = Sweep(quick, grid, tmp_path/'s', 'grid', storage=journal())
    sweep.study.ask() # as a process that was killed
    assert sweep.go(quiet=True)._done('complete')==5 and sweep._done('running')==1
    assert read_sweep(tmp_path/'s', journal()).again('running')==1 and sweep.go(quiet=True)._done('complete')==6
    assert {(o.a, o.b) for o in sweep.df.itertuples()}==ab
    with pytest.raises(ValueError, match="did you mean 'failed'"): sweep.again('fail')

def test_a_trial_that_was_taken_for_dead_is_left_to_the_other(tmp_path):
    def sleeps(folder, a, b):
        if folder.name=='trial_0001' and not (folder/'ran').exists():
            quick(folder, a, b)
            assert read_sweep(tmp_path/'s').again('running')==1 # as another process does that hears no heart
            return dict(accuracy=100.)
        return quick(folder, a, b)
    sweep = Sweep(sleeps, grid, tmp_path/'s', 'grid')
    with pytest.warns(ProxyWarning, match='Trial 1 had no heartbeat.*discarded'): sweep.go(quiet=True)
    df = sweep.df
    assert len(df)==6 and set(df.state)=={'complete'} and df.accuracy.max()<=1 and len(ran(tmp_path/'s')['trial_0001'])==2

# ---- one study, one identity

@pytest.mark.parametrize('url', [None, 'sqlite:///{}/db'])
def test_another_sweep_is_refused_and_says_why(tmp_path, url, monkeypatch):
    def made(c=0):
        def run(folder, a, b, d=0): return dict(accuracy=a*d+c, valid_loss=a)
        return run
    usual = dict(run=made(), space=grid, folder=tmp_path/'s', sampler='grid', storage=url and url.format(tmp_path))
    def sweep(**kw): return Sweep(**usual|kw)
    sweep().go(1, quiet=True)
    for kw,words in (
            (dict(space=grid|dict(b=['x'])), r"Space, b, choices: \['x', 'y'\] there, \['x'\] here"),
            (dict(space=grid|dict(d=.5)), 'Space, d: absent there'),
            (dict(space=dict(a=grid['a'])), 'Space, b: .* there, absent here'),
            (dict(metric='valid_loss'), 'Metric: accuracy there, valid_loss here'),
            (dict(seed=1), 'The seed, which orders the grid: 0 there, 1 here'),
            (dict(sampler='random'), 'The seed, which orders the grid: 0 there, absent here'),
            (dict(run=made(2)), 'Run, inside, c: 0 there, 2 here')):
        with pytest.raises(ValueError, match=f'contains another sweep. {words}.*give a new folder'): sweep(**kw)
    assert len(sweep(sampler=samplers['grid'], pruner=None).go(2, quiet=True).df)==2
    monkeypatch.setattr(s, 'versions', lambda: dict(torch='9.9'))
    with pytest.raises(ValueError, match='Releases, .*there'): sweep()

def test_a_range_that_changes_is_refused_and_a_sampler_may_change(tmp_path):
    Sweep(quick, dict(a=(0.,1.)), tmp_path/'s', 'random', seed=1).go(1, quiet=True)
    with pytest.raises(ValueError, match='Space, a, high: 1.0 there, 2.0 here'): Sweep(quick, dict(a=(0.,2.)), tmp_path/'s')
    with pytest.raises(ValueError, match='Space, a, log: False there, True here'): Sweep(quick, dict(a=(1e-9,1.,'log')), tmp_path/'s')
    assert len(Sweep(quick, dict(a=(0.,1.)), tmp_path/'s', 'tpe', seed=2).go(2, quiet=True).df)==2

def test_other_images_in_the_same_folder_are_refused(photos, tmp_path):
    "In 0.2 the sweep of other images trained nothing and returned the results of the first"
    def sweep(path, **kw): return Sweep(folder_run(path, **tiny|kw), 'area=.1,.3', tmp_path/'s', 'grid', metric='train_loss')
    sweep(photos)
    other = digits(tmp_path/'other', n=100)/'train'
    with pytest.raises(ValueError, match=r'contains another sweep. Run, training images, number: \d+ there, \d+ here'): sweep(other)
    with pytest.raises(ValueError, match='Run, settings, bs: 32 there, 16 here'): sweep(photos, bs=16)
    with pytest.raises(ValueError, match='Run, training images, (bytes|digest)'): sweep(photos, seed=7) # another split
    shutil.copytree(photos, tmp_path/'moved')
    sweep(tmp_path/'moved') # the same images elsewhere
    one,two = sorted(photos.rglob('*.png'))[::len(list(photos.rglob('*.png')))-1]
    one.write_bytes(two.read_bytes()+b'\0')
    with pytest.raises(ValueError, match='images, (bytes|digest)'): sweep(photos)

def test_a_suspect_is_known_by_its_weights_not_by_its_path(photos, tmp_path, monkeypatch):
    kw = dict(arch='test_resnet', pretrained=False, size=32, workers=0, epochs=1)
    one,two = (train_folder(photos, tmp_path/'runs', say=noop, recipe='none', seed=o, **kw) for o in (1,2))
    suspect = Path(shutil.copytree(one, tmp_path/'suspect'))
    def sweep(suspect): return Sweep(folder_run(photos, suspect=suspect, recipe='none', swapped='rest', **kw),
        dict(lr=[1e-3,1e-2]), tmp_path/'sweep', 'grid', 'rest_swapped')
    sweep(suspect)
    monkeypatch.chdir(tmp_path)
    sweep('suspect/model.safetensors') # the same file, written differently
    shutil.copy(two/'model.safetensors', suspect)
    with pytest.raises(ValueError, match='contains another sweep. Run, suspect'): sweep(suspect)

def test_two_folders_of_one_name_do_not_share_a_study_of_a_database(tmp_path):
    url = f'sqlite:///{tmp_path}/db'
    Sweep(quick, dict(a=[.1,.2]), tmp_path/'x'/'sweep', 'grid', storage=url).go(quiet=True)
    other = Sweep(quick, dict(a=[.1,.2]), tmp_path/'y'/'sweep', 'grid', storage=url)
    assert not len(other.df) and len(read_sweep(tmp_path/'x'/'sweep', url).df)==2 and len(optuna.get_all_study_names(url))==2
    with pytest.raises(FileNotFoundError, match='no sweep in'): read_sweep(tmp_path/'x', url)
    with pytest.raises(FileNotFoundError, match='no sweep in'): read_sweep(tmp_path/'x'/'sweep')

def test_trials_without_a_study_and_studies_of_others(tmp_path):
    (tmp_path/'s'/'trial_0000').mkdir(parents=True)
    with pytest.raises(ValueError, match='contains trials of another sweep'): Sweep(quick, grid, tmp_path/'s')
    (tmp_path/'t').mkdir()
    for o in ('mine','sweep'):
        with pytest.raises(FileNotFoundError, match='no sweep in'): read_sweep(tmp_path/'t')
        optuna.create_study(study_name=o, storage=f'sqlite:///{tmp_path}/t/study.db').ask()
    with pytest.raises(ValueError, match="The study 'sweep' was not created by a Sweep"): Sweep(quick, grid, tmp_path/'t')
    with pytest.raises(ValueError, match='not created by a Sweep'): read_sweep(tmp_path/'t')

def test_a_moved_sweep_is_read_and_gone_on_with(tmp_path):
    odd = tmp_path/'a {b} 50%?#'/'s'
    Sweep(quick, grid, odd, 'grid').go(1, quiet=True)
    odd.rename(tmp_path/'moved')
    assert len(read_sweep(tmp_path/'moved').df)==1 and len(Sweep(quick, grid, tmp_path/'moved', 'grid').go(2, quiet=True).df)==2

# ---- what fails

def test_failed_trials_are_kept_with_their_reason_and_run_again(tmp_path):
    def fails(folder, a, b):
        if b=='y' and not (tmp_path/'mended').exists(): raise ValueError(f'{b} cannot work\nand more')
        return quick(folder, float('nan') if (a,b)==(.1,'x') and not (tmp_path/'mended').exists() else a, b)
    sweep = Sweep(fails, grid, tmp_path/'s', 'grid', seed=3)
    try: sweep.go(quiet=True)
    except ValueError: sweep.go(quiet=True) # three at the beginning
    df = sweep.df
    assert len(df)==6 and (df.state=='failed').sum()==4 and (df.problem=='ValueError: y cannot work').sum()==3
    assert df[(df.a==.1) & (df.b=='x')].problem.str.contains('accuracy is nan').all()
    assert (sweep.table().state.tolist()==['complete']*2+['failed']*4 and sweep.best.a==.3 and sweep.study.best_params==dict(a=.3, b='x')
        and sweep.table(2).accuracy.is_monotonic_decreasing)
    (tmp_path/'mended').touch()
    assert sweep.again()==4 and len(sweep.df)==2 and len(sweep.go(quiet=True).df)==6 and 'problem' not in sweep.df
    assert sweep._done('complete')==6 and {(o.a, o.b) for o in sweep.df.itertuples()}==ab

def test_three_of_a_kind_at_the_beginning_stop_it(tmp_path):
    def fails(folder, a, b): raise OSError('The disk is full')
    sweep = Sweep(fails, grid, tmp_path/'s', 'grid')
    with pytest.raises(ValueError, match='first three .* same way .*OSError: The disk is full.*--again failed'): sweep.go(quiet=True)
    assert sweep._done('failed')==3
    with pytest.raises(ValueError, match='No trial is complete'): sweep.plot()
    with pytest.raises(ValueError, match='No trial is complete yet'): sweep.best
    assert '3 failed' in repr(sweep) and sweep.summary['best'] is None
    def third(folder, a, b):
        if folder.name!='trial_0002': raise OSError('full')
        return quick(folder, a, b)
    assert Sweep(third, grid, tmp_path/'t', 'grid').go(quiet=True)._done('failed')==5 # not at the beginning

@pytest.mark.parametrize('said,words', [
    (dict(loss=1.), "should return 'accuracy'.*It returned {'loss': 1.0}"),
    (dict(acuracy=1.), "did you mean 'acuracy'"),
    (dict(accuracy='high'), 'dictionary of numbers'),
    (dict(accuracy=1., note='high'), 'dictionary of numbers'),
    (None, 'dictionary of numbers. It returned .*None'),
    ({}, 'It returned {}')])
def test_a_run_that_says_something_else_stops_the_sweep(tmp_path, said, words):
    sweep = Sweep(lambda folder, a: said, dict(a=[1,2]), tmp_path/'s', 'grid')
    with pytest.raises(TypeError, match=words): sweep.go(quiet=True)
    assert not sweep._done('complete','running') and sweep._one(0) is False and not sweep._done('failed') # it is queued again

def test_a_number_is_the_metric(tmp_path):
    sweep = Sweep(lambda folder, a: torch.tensor(a), dict(a=[1,2]), tmp_path/'s', 'grid', metric='plain.loss')
    assert sweep.go(quiet=True).best.a==1 and sweep.table().a.tolist()==[1,2]
    assert Sweep(lambda folder, a: a, dict(a=[1,2]), tmp_path/'t', 'grid', metric='lossy.accuracy').go(quiet=True).best.a==2

def test_a_storage_that_fails_in_the_middle_is_a_sentence(tmp_path, capfd):
    def gone(folder, a, b):
        shutil.rmtree(tmp_path/'s')
        return quick(tmp_path, a, b)
    with pytest.raises(OSError, match=r'can no longer be read or written \(.*\): solve this, then run the same command again'):
        Sweep(gone, grid, tmp_path/'s', 'grid').go(quiet=True)
    storage = RDBStorage(f'sqlite:///{tmp_path}/db', engine_kwargs=dict(connect_args=dict(timeout=.1)))
    def locks(folder, a, b):
        if folder.name=='trial_0001' and not (folder/'was').exists():
            (folder/'was').touch()
            held.append(sqlite3.connect(tmp_path/'db'))
            held[0].execute('BEGIN EXCLUSIVE')
        return quick(folder, a, b)
    held = []
    with pytest.raises(OSError, match=r'database is locked\): solve'):
        Sweep(locks, grid, tmp_path/'t', 'grid', storage=storage).go(quiet=True)
    assert 'Traceback' not in capfd.readouterr().err

def test_a_file_that_is_no_study(tmp_path):
    (tmp_path/'s').mkdir()
    (tmp_path/'s'/'study.db').write_bytes(b'nonsense'*200)
    with pytest.raises(OSError, match='cannot be opened .*not a database'): Sweep(quick, grid, tmp_path/'s', 'grid')
    with pytest.raises(OSError, match='cannot be opened .*not a database'): read_sweep(tmp_path/'s')
    (tmp_path/'file').touch()
    with pytest.raises(OSError, match='cannot be opened .*give another folder'): Sweep(quick, grid, tmp_path/'file', 'grid')

# ---- words

@pytest.mark.parametrize('kw,words', [
    (dict(space=dict(c=[1,2])), "no parameter 'c'"), (dict(space=dict(folder=[1,2])), 'a sweep uses that name itself'),
    (dict(space=dict(a=[])), "a=.* is not a valid space"), (dict(space=dict(a=[1,1])), 'a choice is given twice'),
    (dict(space=dict(a=.1)), 'No parameter varies'), (dict(space={}), 'No parameter varies'),
    (dict(space=None), 'should be a dictionary'),
    (dict(space=dict(a=(2,1))), 'from a smaller'), (dict(space=dict(a=(0,1,'log'))), '`low >= 1`'),
    (dict(space=dict(a=(1,2,3))), 'a range is \\(lo, hi\\)'), (dict(space=dict(a=(1,))), 'a range is \\(lo, hi\\)'),
    (dict(space=dict(a=('x','y'))), 'choices are a list'), (dict(space=dict(a=(0.,float('nan')))), 'from a smaller'),
    (dict(space=dict(a=[print,1])), 'give any other value a name'),
    (dict(space='a=1..x'), 'choices are a list'), (dict(space='a'), 'should be a name'), (dict(space='a=1..2 a=3'), 'given only once'),
    (dict(sampler='grit'), "did you mean 'grid'"), (dict(space=dict(a=(0.,1.)), sampler='grid'), 'a is a range'),
    (dict(sampler=lambda space: 3), 'should return an Optuna sampler'),
    (dict(pruner='median'), 'an argument `trial`'), (dict(pruner='medium'), "did you mean 'median'"),
    (dict(run=min), 'have no known names'),
    (dict(seed=-1), 'seed=-1'), (dict(seed=1.5), 'whole number'), (dict(metric=3), 'metric=3'), (dict(run=3), 'should be a function'),
    (dict(storage='nonsense'), 'cannot be opened'),
    (dict(space=dict(a=list(range(400)), b=[str(i) for i in range(400)])), '160000 points')])
def test_wrong_words_are_refused_before_anything_is_written(tmp_path, kw, words):
    with pytest.raises((ValueError,TypeError,OSError), match=words):
        Sweep(**dict(run=quick, space=grid, folder=tmp_path/'s', sampler='grid')|kw)
    assert 'storage' in kw or not (tmp_path/'s').exists()

def test_go_says_how_many(tmp_path):
    sweep = Sweep(quick, dict(a=(0.,1.)), tmp_path/'s')
    for n,words in ((0, 'n=0'), (2.5, 'n=2.5'), (True, 'n=True')):
        with pytest.raises((TypeError,ValueError), match=words): sweep.go(n)
    with pytest.raises(ValueError, match='opened for reading'): read_sweep(tmp_path/'s').go(3)
    with pytest.raises(FileNotFoundError, match='no sweep in'): read_sweep(tmp_path/'none')
    assert not len(sweep.df) and not len(sweep.table()) and 'no trial yet' in repr(sweep) and not (tmp_path/'none').exists()

def test_what_is_told(tmp_path, capsys):
    Sweep(quick, grid, tmp_path/'s', 'grid').go(2)
    assert capsys.readouterr().out.splitlines()[-1].startswith('2 of 2 trials, best accuracy ')
    Sweep(quick, grid, tmp_path/'s', 'grid').go(2)
    assert not capsys.readouterr().out

# ---- Optuna's own

def test_pruner_only_if_asked(tmp_path):
    def run(folder, a, trial):
        for i in range(2):
            trial.report(a, i)
            if trial.should_prune(): raise optuna.TrialPruned(f'after {i}')
        return a
    space = dict(a=[float(o) for o in range(8)])
    sweep = Sweep(run, space, tmp_path/'yes', 'grid', pruner='median').go(quiet=True)
    assert (sweep._done('pruned')>0 and sweep._done('complete','pruned')==8 and sweep.best.a==7
        and sweep.df.problem.dropna().str.startswith('after').all())
    assert not Sweep(run, space, tmp_path/'no', 'grid').go(quiet=True)._done('pruned')

def test_own_samplers_points_and_distributions(tmp_path):
    space = dict(a=optuna.distributions.FloatDistribution(0, 1, step=.25), b=L('x','y'))
    sweep = Sweep(quick, space, tmp_path/'own', optuna.samplers.RandomSampler(seed=0))
    sweep.study.enqueue_trial(dict(a=.25, b='y'))
    df = sweep.go(4, quiet=True).df
    assert set(df.a)<={0,.25,.5,.75,1} and len(df)==4 and (df.a[0],df.b[0])==(.25,'y')
    seeds = []
    def mine(seed):
        seeds.append(seed)
        return optuna.samplers.RandomSampler(seed=seed)
    df = Sweep(quick, dict(a=(0.,1.), b='y'), tmp_path/'mine', mine).go(3, quiet=True).df
    assert len(set(seeds))==4 and df.a.nunique()==3 and set(df.b)=={'y'} and len(df.columns)==8
    for o in ('fill=swap,,zero','fill=swap,','steps=1,p|'):
        with pytest.raises(ValueError, match='has an empty value: remove it, or write none'): read_space(o)
    assert read_space('a=1..3 b=1..3:log c=no d=x')==dict(a=(1,3), b=(1,3,'log'), c=False, d='x')
    def typed(folder, a:float, n:int): return a
    sweep = Sweep(typed, dict(a=(0,1), n=(1,4)), tmp_path/'typed').go(3, quiet=True)
    assert sweep.df.a.map(lambda o: o not in (0,1)).all() and sweep.df.n.dtype=='int64'

def test_nothing_of_ours_is_left_behind(tmp_path):
    rc,level = dict(plt.rcParams), optuna.logging.get_verbosity()
    sweep = Sweep(quick, dict(a=(0.,1.), b=['x','y']), tmp_path/'s').go(4, quiet=True)
    assert len(sweep.plot(params=['a']).figure.axes)==2+1 and len(sweep.plot('slice'))==2 and sweep.plot('slice', params=['b']).has_data()
    for o in ('optimization_history','contour','rank','edf','param_importances'): assert np.ravel(sweep.plot(o))[0].figure
    with pytest.raises(ValueError, match="did you mean 'slice'"): sweep.plot('slic')
    one = Sweep(quick, dict(a=(0.,1.), b='x'), tmp_path/'one').go(1, quiet=True)
    assert one.plot().has_data() and one.plot('slice').has_data() # of a
    plt.close('all')
    assert dict(plt.rcParams)==rc and optuna.logging.get_verbosity()==level
    assert '<table' in sweep._repr_html_()
    left = {o.name for o in (tmp_path/'s').iterdir()}-{'.turn','study.db-wal','study.db-shm'}
    assert left=={'study.db', *(f'trial_{i:04d}' for i in range(4))}

# ---- a folder of images

def test_a_folder_is_checked_before_the_first_trial(photos, tmp_path, fingerprint):
    before = fingerprint(photos.parent)
    run = folder_run(photos, **tiny)
    for kw,words in (
            (dict(space='aera=.1..3'), "did you mean 'area'"),
            (dict(space='fill=swap,zerro'), "did you mean 'zero'"),
            (dict(space='area=-1..0.2'), 'area=-1'),
            (dict(space='size=16,x'), 'should be a whole number'),
            (dict(space='area=.1,.2', metric='acuracy'), "did you mean 'accuracy'"),
            (dict(space='area=.1,.2', metric='plain.accuracy'), "has no metric 'plain.accuracy'"),
            (dict(space='area=.1,.2', folder=photos/'sweep'), 'nothing is ever written there'),
            (dict(space='folds=2,3', pruner='median'), 'neither with folds')):
        with pytest.raises((ValueError,TypeError), match=words): Sweep(run, **dict(folder=tmp_path/'s')|kw)
    with pytest.raises(ValueError, match='No training images are given'): Sweep(folder_run(), 'area=.1,.2', tmp_path/'s')
    with pytest.raises(TypeError, match="did you mean 'arch'"): folder_run(photos, ach='resnet18')
    assert not (tmp_path/'s').exists() and fingerprint(photos.parent)==before

def test_several_labels_have_metrics_of_their_own(tmp_path):
    "There is no `accuracy` to choose by: each trial failed after its first epoch"
    bed = two_digits(tmp_path/'bed', n_train=60, n_test=16)
    run = folder_run(bed/'labels.csv', label_delim=' ', valid_col='part', tests=dict(plain=bed/'plain.csv'), **tiny)
    with pytest.raises(ValueError, match="no metric 'accuracy', did you mean 'accuracy_multi'"): Sweep(run, 'seed=0,1', tmp_path/'s')
    for metric,pruner in (('mean_ap','median'),('plain.mean_ap',None)):
        sweep = Sweep(run, 'seed=0,1', tmp_path/metric, metric=metric, pruner=pruner).go(1, quiet=True)
        assert 0<=sweep.best[metric]<=1 and list(sweep.df.state)==['complete']

def test_metrics_of_test_sets_and_the_warning_without_them(photos, tmp_path):
    run = folder_run(photos, **tiny)
    with pytest.warns(ProxyWarning, match='accuracy is measured on validation images.*use the shortcut'):
        Sweep(run, 'area=.1,.2', tmp_path/'s')
    with warnings.catch_warnings():
        warnings.simplefilter('error', ProxyWarning)
        Sweep(run, 'lr=.1,.2', tmp_path/'t')
        Sweep(run, 'area=.1,.2', tmp_path/'u', metric='train_loss')
        run.tests = dict(flipped='somewhere')
        Sweep(run, 'area=.1,.2', tmp_path/'v')
        assert Sweep(run, 'area=.1,.2', tmp_path/'w', metric='flipped.loss').study.direction.name=='MINIMIZE'
        assert Sweep(run, 'area=.1,.2', tmp_path/'x', metric='flipped.accuracy').study.direction.name=='MAXIMIZE'
    with pytest.raises(ValueError, match="Available: .*flipped.accuracy"): Sweep(run, 'area=.1,.2', tmp_path/'y', metric='fliped.accuracy')
    with pytest.raises(ValueError, match='nor with the metric of a test set .here flipped.accuracy'):
        Sweep(run, 'area=.1,.2', tmp_path/'y', metric='flipped.accuracy', pruner='median')

def test_a_configuration_begins_it_and_images_are_decoded_once(photos, tmp_path, monkeypatch):
    import proxy_attention.data.checks as images
    decoded,usual = [],images._problem
    monkeypatch.setattr(images, '_problem', lambda f: decoded.append(f) or usual(f))
    toml = tmp_path/'c.toml'
    toml.write_text(to_toml(changed(Config(), area=.2, rule='area', **tiny)))
    told = []
    sweep = sweep_folder(photos, 'lr=.01,.001', out=tmp_path/'s', sampler='grid', metric='valid_loss', config=toml,
        say=told.append, recipe='none')
    assert any('does not use them: steps, share, rule, area' in o for o in told) and any('keeps its length: 2 epochs' in o for o in told)
    assert sweep._done('complete')==2 and len(decoded)==len(set(decoded))==len(sweep.run.images)
    assert any('2 complete' in o for o in told) and (tmp_path/'s'/'slice.png').exists()
    one = tmp_path/'s'/'trial_0000' # as if the process had gone after the training, and before it said so
    assert sweep.run(one, **sweep.study.trials[0].params)['valid_loss']==sweep.df.valid_loss[0] and len(list(one.glob('train_*')))==1

def test_a_training_is_stopped_early_if_asked(photos, tmp_path):
    class Second(optuna.pruners.BasePruner):
        def prune(self, study, trial): return trial.number==1
    sweep = Sweep(folder_run(photos, **tiny), 'area=.1,.3', tmp_path/'s', 'grid', metric='valid_loss', pruner=Second()).go(quiet=True)
    df = sweep.df
    assert df.state.tolist()==['complete','pruned'] and df.problem[1].endswith('after 1 epoch')
    one,two = (next((tmp_path/'s'/o).glob('train_*')) for o in df.run)
    assert (list(sweep.study.trials[0].intermediate_values.values())==pytest.approx(pd.read_csv(one/'history.csv').valid_loss)
        and list(sweep.study.trials[1].intermediate_values)==[1])
    assert finished(one) and run_state(two)=='stopped' and not (two/'history.csv').exists()

def test_a_suspect_and_its_successor_are_one_trial():
    "Epochs are counted over both fits, so that the first epoch of the successor is not compared with that of other suspects"
    study = optuna.create_study()
    learn = synth_learner(cbs=s.StopEarly(trial := study.ask(), 'valid_loss'))
    with learn.no_bar(), learn.no_logging():
        for _ in range(2): learn.fit(2)
    study.tell(trial, 1.)
    assert sorted(study.trials[0].intermediate_values)==[1,2,3,4]

def test_a_round_on_the_command_line_killed_and_gone_on_with(photos, tmp_path, capsys, monkeypatch, fingerprint):
    "The trial that was cut off after its first epoch goes on from there; the same command ends with the table"
    import proxy_attention.experiment.learner as t
    before,usual = fingerprint(photos.parent), t.arch_learner
    monkeypatch.setattr(s, '_beat', (1,2))
    class Killed(Callback):
        def after_batch(self):
            if self.training and self.epoch==1: os.kill(os.getpid(), signal.SIGKILL)
    args = ['proxy-sweep', str(photos), '--space', 'area=0.1,0.3 fill=swap', '--sampler', 'grid', '--metric', 'valid_loss',
        '--out', str(tmp_path/'s'), '--pretrained', 'no',
        *f"--arch test_resnet --size 16 --workers 0 --steps 1,p,1 --share .5 --bs 32".split()]
    def cut():
        t.arch_learner = lambda *a: usual(*a).add_cb(Killed())
        proxy_sweep(str(photos), space='area=0.1,0.3 fill=swap', sampler='grid', metric='valid_loss', out=str(tmp_path/'s'),
            quiet=True, **tiny)
    p = started(cut)
    p.join()
    assert p.exitcode==-signal.SIGKILL and [len(list(o.glob('train_*'))) for o in (tmp_path/'s').glob('trial_*')]==[1]
    monkeypatch.setattr(sys, 'argv', args)
    # as the installed script does it
    exec(compile('proxy_sweep()', 'script', 'exec'), dict(__name__='__main__', __file__='script', proxy_sweep=proxy_sweep))
    out = capsys.readouterr().out
    assert '2 complete' in out and 'parallel_coordinate.png' in out and Image.open(tmp_path/'s'/'slice.png').width>150
    df = read_sweep(tmp_path/'s').df
    assert sorted(df.area)==[.1,.3] and (df.fill=='swap').all() and set(df.state)=={'complete'}
    assert [len(list(o.glob('train_*'))) for o in sorted((tmp_path/'s').glob('trial_*'))]==[1,1]
    assert fingerprint(photos.parent)==before
    proxy_sweep(str(photos), space='area=0.1,0.3 fill=swap', sampler='grid', metric='valid_loss', out=str(tmp_path/'s'), json=True, **tiny)
    told = json.loads(capsys.readouterr().out)
    assert told['complete']==2 and told['best']['valid_loss']==df.valid_loss.min()
    with pytest.raises(CliError, match='Give the parameters to vary'): proxy_sweep(str(photos))
