"The commands as a user types them: one from a cold start, the others from warm processes"
import json, os, signal, subprocess, time
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
import pytest, warm
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.core import new_run
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.experiment.config import Config, DataConfig, FitConfig, changed, from_toml, to_toml
from proxy_attention.experiment.train import check_config, fit_length
from proxy_attention.cli import CliError, proxy_runs, proxy_train

pytestmark = pytest.mark.limit(170)

small = dict(arch='test_resnet', pretrained=False, size=32, workers=0)
small_args = ('--arch', 'test_resnet', '--pretrained', 'no', '--size', 32, '--workers', 0)
def run(*args, **kwargs): return warm.run(warm.script, *args, **kwargs)
def run_cold(*args, **kwargs):
    return subprocess.run([warm.bin/args[0], *map(str, args[1:])], capture_output=True, text=True, timeout=160, **kwargs)

def test_demo_end_to_end(tmp_path):
    res = run('proxy-demo', '--epochs', 2, '--n', 300, cwd=tmp_path)
    assert res.returncode==0 and not res.stderr, res.stderr
    assert os.listdir(tmp_path)==['runs']
    o, = (tmp_path/'runs').iterdir()
    table = pd.read_csv(o/'table.csv', index_col='arm')
    assert list(table.columns)==['plain','aligned','flipped','on digit','on shortcut','on rest','seconds']
    assert table.index.tolist()==['without','with proxies']
    assert np.allclose(table[['on digit','on shortcut','on rest']].sum(1), 1, atol=.01)
    assert Image.open(o/'demo.png').width>800
    assert (o/'verdict.txt').read_text(encoding='utf-8').strip()==res.stdout.split('\n\n')[-2].replace('\n', ' ')

def test_runs_that_start_together_have_a_folder_each(tmp_path):
    with ThreadPoolExecutor(8) as ex: made = list(ex.map(lambda _: new_run(tmp_path/'runs', 'demo'), range(40)))
    assert len(set(made))==len(list((tmp_path/'runs').iterdir()))==40

def test_train_end_to_end(path, tmp_path, fingerprint):
    before = fingerprint(path)
    # a relative path, as people type it
    res = run('proxy-train', path.name, *small_args, '--steps', '1,p,1', '--out', tmp_path/'runs', '--save-images', '--share', .5,
              cwd=path.parent)
    assert res.returncode==0, res.stderr
    assert fingerprint(path)==before
    o, = (tmp_path/'runs').iterdir()
    assert {'config.toml','folds.csv','checkpoints','tensorboard','history.csv','proxy_log.csv','proxy_steps.csv','heat.npz',
            'manifest.csv','proxies','proxies.png','model.pkl'} <= set(os.listdir(o))
    assert from_toml(o/'config.toml').proxy.steps=='1,p,1'
    assert len(pd.read_csv(o/'history.csv'))==2
    learn = load_learner(o/'model.pkl')
    with learn.no_bar(): assert learn.predict(get_image_files(path/'plain')[0])[0] in learn.dls.vocab

@pytest.mark.parametrize('name', ['proxy-demo','proxy-train','proxy-explain','proxy-runs'])
def test_help(name):
    res = run(name, '--help')
    assert res.returncode==0 and res.stdout.startswith(f'usage: {name} [-h]') and not res.stderr, res

@pytest.mark.parametrize('run,args,words', [
    (run, ['nowhere'], 'There is no folder and no CSV file nowhere'),
    (run_cold, ['{path}','--arch','resnet10t','--out','{tmp}'], 'train from scratch with `pretrained=False` (`--pretrained no`)')
], ids=['folder','weights'])
def test_errors_are_one_line_on_the_terminal(path, tmp_path, run, args, words):
    res = run('proxy-train', *[o.format(path=path, tmp=tmp_path) for o in args],
              env=os.environ|dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path/'hf')))
    assert res.returncode==1 and words in res.stderr and 'Traceback' not in res.stderr, res.stderr
    assert len(res.stderr.strip().splitlines())==1, res.stderr

@pytest.mark.parametrize('kw,words', [
    (dict(arch='resnet81'), "did you mean 'resnet18'?"), (dict(steps='5,q'), "'q' in the steps"), (dict(share=3.), 'share=3.0'),
    (dict(fill='blakc'), 'No fill is called'), (dict(out='/proc/none', pretrained=False), 'cannot be made'),
    (dict(recipe='shortcut', objects='x.csv'), 'asks no probe'), (dict(recipe='probed', objects='no.csv'), 'no.csv: objects should be'),
    (dict(recipe='none', area=.1), 'has no use for area'), (dict(recipe='masktun'), "did you mean 'masktune'?"),
    (dict(steps='2,p,2', epochs=3), 'this fit has 3'), (dict(valid_pct=2.), 'valid_pct=2.0'),
    (dict(bs=0), 'bs=0'), (dict(size=2.5), 'size=2.5'),
    (dict(recipe='shortcut', epochs=1), 'has no proxy step'), (dict(out='{path}/runs'), 'nothing is ever written there'),
    (dict(arch='alexnet', size=8, pretrained=False), 'does not work on images of 8×8')])
def test_errors_are_sentences(path, kw, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kw = {k:v.format(path=path) if isinstance(v, str) else v for k,v in kw.items()}
    with pytest.raises(CliError, match=re.escape(words)) as e: proxy_train(str(path), **kw)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('kw,words', [
    (dict(epochs=0), 'epochs=0 should be 1 or more'), (dict(epochs=-3), 'epochs=-3 should be 1 or more'),
    (dict(wd=-5.), 'wd=-5.0 should be a number from 0 to'), (dict(wd=np.nan), 'wd=nan should be a number from 0 to'),
    (dict(wd=np.inf), 'wd=inf should be a number from 0 to'), (dict(workers=-1), 'workers=-1 should be 0 or more'),
    (dict(lr=np.nan), 'lr=nan should be a number from'), (dict(lr=-1e-3), 'lr=-0.001 should be a number from'),
    (dict(lr=np.inf), 'lr=inf should be a number from'), (dict(discriminative=np.nan), 'discriminative=nan should be a number from'),
    (dict(bs=-2), 'bs=-2 should be 1 or more'), (dict(size=0), 'size=0 should be 1 or more'),
    (dict(folds=1), 'folds=1 should be 2 or more'),
    (dict(freeze_epochs=-1), 'freeze_epochs=-1 should be 0 or more'), (dict(seed=-1), 'seed=-1 should be a number from 0 to'),
    (dict(seed=2**32), 'seed=4294967296 should be a number from 0 to'), (dict(n_per_class=0), 'n_per_class=0 should be 1 or more'),
    (dict(subset=np.nan), 'subset=nan should be a number from 0 to 1'),
    (dict(valid_pct=-.1), 'valid_pct=-0.1 should be a number from 0 to 1'),
    (dict(prune=np.nan), 'prune=nan should be a number from 0 to 1'), (dict(prune=-.1), 'prune=-0.1 should be a number from 0 to 1'),
    *((dict([(k,v)]), f'{k}={v}') for k in ('area','share','start','every','max_area','min_area','edge','p')
        for v in (np.nan,np.inf,-np.inf,-7.)),
    (dict(k=np.nan, rule='mean_std'), 'k=nan'), (dict(threshold=np.inf, rule='absolute'), 'threshold=inf'),
    (dict(cells=np.nan, rule='top_cells'), 'cells=nan'), (dict(weight=np.inf, fill='blend'), 'weight=inf'),
    (dict(radius=np.nan, fill='blur'), 'radius=nan'), (dict(keep=np.nan, rule='rest'), 'keep=nan'),
    (dict(margin=np.inf, rule='rest'), 'margin=inf'),
    *((dict([(k,True)]), f'{k}=True should be a') for k in ('epochs','lr','bs','size','wd','workers','seed','area','share','prune'))])
def test_numbers_that_no_run_can_have(kw, words, tmp_path):
    "Each is refused in one sentence, whichever way it comes in"
    with pytest.raises((ValueError,TypeError), match=re.escape(words)) as e: check_config(changed(Config(), arch='test_resnet', **kw))
    assert str(e.value).endswith('.') and len(str(e.value).splitlines())==1
    with pytest.raises(CliError, match=re.escape(words)): proxy_train(str(tmp_path), arch='test_resnet', out=str(tmp_path/'runs'), **kw)
    assert not (tmp_path/'runs').exists()

@pytest.mark.parametrize('cfg,words', [
    (Config(fit=FitConfig(epochs=0)), 'epochs=0'), (Config(fit=FitConfig(lr=True)), 'lr=True should be a number'),
    (Config(data=DataConfig(bs=2.5)), 'bs=2.5 should be a whole number'), (Config(data=DataConfig(workers='two')), "workers='two'")])
def test_a_configuration_by_hand_is_checked_too(cfg, words):
    with pytest.raises((ValueError,TypeError), match=re.escape(words)): check_config(cfg)

def test_numbers_that_a_run_may_have():
    for kw in (dict(), dict(epochs=3), dict(wd=0.), dict(wd=.1), dict(workers=0), dict(seed=0), dict(lr=3), dict(steps='2,p,3'),
               dict(freeze_epochs=0), dict(prune=.5), dict(valid_pct=.5), dict(start=-1), dict(share=20)):
        cfg = changed(Config(), **kw)
        assert check_config(cfg)==fit_length(cfg)==kw.get('epochs', 5 if 'steps' in kw else 10)

def test_a_file_of_settings_is_refused_alike(path, tmp_path):
    (tmp_path/'config.toml').write_text(to_toml(Config()).replace('lr = 0.001', 'lr = nan\nepochs = 0'))
    with pytest.raises(CliError, match='epochs=0 should be 1 or more'):
        proxy_train(str(path), config=str(tmp_path/'config.toml'), out=str(tmp_path/'runs'))

def until(p, log, words):
    "Wait until a process has said `words`"
    while words not in (log.read_text(encoding='utf-8') if log.exists() else ''):
        assert p.is_alive(), (log.parent/'stderr').read_text(encoding='utf-8')
        time.sleep(.02)

def test_ctrl_c(path, tmp_path):
    with warm.begin(warm.script, 'proxy-train', path, '--epochs', 50, *small_args, '--out', tmp_path/'runs', out=tmp_path) as p:
        until(p, tmp_path/'stdout', 'Epoch 2/')
        os.kill(p.pid, signal.SIGINT)
        p.join(30)
    err = (tmp_path/'stderr').read_text(encoding='utf-8')
    assert p.exitcode==130 and 'Go on with: proxy-train --resume' in err, (p.exitcode, err)
    o, = (tmp_path/'runs').iterdir()
    assert not (o/'model.pkl').exists() and (o/'checkpoints'/'last.pth').exists()

def weights_of(run): return load_learner(run/'model.pkl').model.state_dict()

def test_killed_and_gone_on_with(path, tmp_path, same, capsys):
    "kill -9 in the middle of the third epoch; the run that goes on ends with the same bits, and so does its log"
    with warm.begin(warm.script, 'proxy-train', path, '--steps', '1,p,3', '--share', 50, '--lr', '3e-3', *small_args,
                    '--out', tmp_path/'cut', out=tmp_path) as p:
        until(p, tmp_path/'stdout', 'Epoch 3/')
        p.kill(); p.join()
    assert p.exitcode==-signal.SIGKILL
    whole = train_folder(path, tmp_path/'whole', steps='1,p,3', share=50, lr=3e-3, say=noop, **small)
    cut, = (tmp_path/'cut').iterdir()
    capsys.readouterr()
    proxy_train(resume=str(cut), json=True)
    assert json.loads(capsys.readouterr().out)['run']==str(cut)
    assert same(weights_of(whole), weights_of(cut))
    for o in ('history.csv','proxy_log.csv'): assert pd.read_csv(whole/o).equals(pd.read_csv(cut/o))
    assert np.array_equal(HeatmapStore.load(whole/'heat.npz').grids, HeatmapStore.load(cut/'heat.npz').grids)
    with pytest.raises(CliError, match='leave the other options out'): proxy_train(resume=str(cut), lr=1.)
    with pytest.raises(CliError, match='it has no config.toml'): proxy_train(resume=str(tmp_path))

def test_config_again_runs_and_explain(few, tmp_path, fingerprint, capsys):
    "A run's config.toml runs it again, options override it, `proxy-runs` lists both, `proxy-explain` shows them side by side"
    before = fingerprint(few)
    proxy_train(str(few), out=str(tmp_path/'runs'), steps='1,p,1', fill='mean', json=True, **small)
    out = capsys.readouterr().out
    first = json.loads(out)
    assert len(out.splitlines())==1
    proxy_train(config=str(Path(first['run'])/'config.toml'), out=str(tmp_path/'runs'),
                recipe='late', epochs=3, steps='1,p,2', quiet=True)
    assert not capsys.readouterr().out
    a,b = sorted((tmp_path/'runs').iterdir())
    assert from_toml(b/'config.toml')==changed(from_toml(a/'config.toml'), recipe='late', epochs=3, steps='1,p,2')
    proxy_runs(str(tmp_path/'runs'), json=True)
    table = json.loads(capsys.readouterr().out)
    assert (len(table)==2 and {o['recipe'] for o in table}=={'default','late'}
            and first['accuracy'] in [round(o['accuracy'], 6) for o in table])
    (tmp_path/'bad.toml').write_text('[model]\nach = "resnet18"')
    with pytest.raises(CliError, match="did you mean 'arch'?"): proxy_train(str(few), config=str(tmp_path/'bad.toml'))
    res = run('proxy-explain', a/'model.pkl', few/'plain'/'3', '--against', b/'model.pkl', '--out', tmp_path/'seen')
    assert res.returncode==0, res.stderr
    seen, = (tmp_path/'seen').iterdir()
    assert (len(pd.read_csv(seen/'predictions.csv'))==len(get_image_files(few/'plain'/'3'))
            and (seen/'sheet_001.png').exists() and fingerprint(few)==before)
    res = run('proxy-runs', tmp_path/'runs')
    assert res.returncode==0 and res.stdout.count('test_resnet')==2, res.stderr

def test_folds_and_a_cut_in_the_second(path, tmp_path, monkeypatch):
    "Each image is in validation once; a run that is stopped in its second fold ends with the same table"
    import proxy_attention.experiment.train as t
    told,usual,made = [],t.arch_learner,[]
    args = dict(steps='1,p,1', folds=2, bs=16, say=told.append, **small)
    o = train_folder(path/'valid', tmp_path/'runs', **args)
    assert (pd.read_csv(o/'folds.csv').fold.value_counts()==32).all() and 'mean ± standard deviation' in told[-1]
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.epoch==1: raise KeyboardInterrupt
    def stopping(*args):
        made.append(usual(*args))
        return made[-1].add_cb(Stop()) if len(made)==2 else made[-1]
    monkeypatch.setattr(t, 'arch_learner', stopping)
    with pytest.raises(KeyboardInterrupt, match='Go on with: proxy-train --resume'):
        train_folder(path/'valid', tmp_path/'cut', **args)
    cut, = (tmp_path/'cut').iterdir()
    assert resume_run(cut, told.append)==cut
    assert len(made)==3, 'the fold that was finished is not made again'
    a,b = (pd.read_csv(x/'folds_result.csv') for x in (o,cut))
    assert len(a)==2 and a.equals(b)

def test_rate_and_batch_size_are_found(path, tmp_path, same, monkeypatch, capsys):
    "`find_lr` asks fastai; `find_bs` halves until a step fits (here: no more than 8 images do)"
    import proxy_attention.experiment.train as t
    def small_memory(bs):
        learn = t.arch_learner(
            lambda: ImageFolder(path).dataloaders(bs=bs, num_workers=0, item_tfms=Resize(32)), 'test_resnet', 32, False)
        forward = learn.model.forward
        def limited(x):
            if learn.model.training and len(x)>8: raise RuntimeError('CUDA out of memory. Tried to allocate')
            return forward(x)
        learn.model.forward = limited
        return learn
    assert t.largest_batch(small_memory, 32)==8
    def elsewhere(bs):
        learn = digits_learner(path, bs=bs)
        learn.dls.device = torch.device('meta') # where a GPU would be, batches come on another device than the model was made on
        return learn
    assert t.largest_batch(elsewhere, 32)==32
    told = []
    monkeypatch.setattr(Learner, 'lr_find', partialmethod(Learner.lr_find, num_it=40)) # of 100
    run = train_folder(path, tmp_path/'runs', recipe='none', epochs=1, find_lr=True, find_bs=True, bs=16, augment='strong',
                       say=told.append, **small)
    model = weights_of(run)
    assert any('lr_find suggests a rate of' in o for o in told)
    assert not capsys.readouterr().out, 'no bar of `lr_find` either'
    with monkeypatch.context() as m: # another rate, such as a GPU may find the second time, would be another run
        m.delattr(Learner, 'lr_find'); m.delattr(t, 'largest_batch')
        (run/'model.pkl').unlink()
        assert same(weights_of(resume_run(run, noop)), model)
    monkeypatch.setattr(t, 'arch_learner', None)
    assert resume_run(run, told.append)==run and 'is finished' in told[-1]
    with pytest.raises(ValueError, match="did you mean 'strong'?"): train_folder(path, augment='stong')
