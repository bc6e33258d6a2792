"The commands as a user types them"
import json, os, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
import pytest
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.cli import CliError, proxy_train

pytestmark = pytest.mark.limit(170)
bin = Path(sys.executable).parent

def run(*args, **kwargs): return subprocess.run([bin/args[0], *map(str, args[1:])], capture_output=True, text=True, timeout=160, **kwargs)

def test_demo_end_to_end(tmp_path):
    with ThreadPoolExecutor() as ex: # started together, and none writes over the other
        res = list(ex.map(lambda _: run('proxy-demo', '--epochs', 2, '--out', tmp_path/'runs'), range(2)))
    assert [o.returncode for o in res]==[0,0], res[0].stderr
    runs = list((tmp_path/'runs').iterdir())
    assert len(runs)==2
    for o in runs:
        table = pd.read_csv(o/'table.csv', index_col='arm')
        assert list(table.columns)==['plain','shortcut','flipped','on digit','on shortcut','on rest','seconds']
        assert table.index.tolist()==['without','with proxies']
        assert np.allclose(table[['on digit','on shortcut','on rest']].sum(1), 1, atol=.01)
        assert Image.open(o/'demo.png').width>800
    assert {(o/'verdict.txt').read_text(encoding='utf-8').strip() for o in runs}=={o.stdout.split('\n\n')[-2].replace('\n', ' ') for o in res}
    assert not res[0].stderr, res[0].stderr

def test_train_end_to_end(path, tmp_path, fingerprint):
    before = fingerprint(path)
    res = run('proxy-train', path.name, '--arch', 'resnet10t', '--steps', '1,p,1', '--pretrained', 'no', '--size', 32, '--workers', 0, '--out', tmp_path/'runs', '--save-images', '--share', .5, cwd=path.parent) # a relative path, as people type it
    assert res.returncode==0, res.stderr
    assert fingerprint(path)==before
    o, = (tmp_path/'runs').iterdir()
    assert {'config.toml','folds.csv','checkpoints','tensorboard','history.csv','proxy_log.csv','proxy_steps.csv','heat.npz','manifest.csv','proxies','proxies.png','model.pkl'} <= set(os.listdir(o))
    assert from_toml(o/'config.toml').proxy.steps=='1,p,1'
    assert len(pd.read_csv(o/'history.csv'))==2
    learn = load_learner(o/'model.pkl')
    with learn.no_bar(): assert learn.predict(get_image_files(path/'plain')[0])[0] in learn.dls.vocab

@pytest.mark.parametrize('args,words', [
    (['nowhere'], 'There is no folder and no CSV file nowhere'), (['{path}','--arch','resnet10t','--out','{tmp}'], 'pretrained weights of resnet10t cannot be had here')])
def test_errors_are_one_line_on_the_terminal(path, tmp_path, args, words):
    res = run('proxy-train', *[o.format(path=path, tmp=tmp_path) for o in args], env=os.environ|dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path/'hf')))
    assert res.returncode==1 and words in res.stderr and 'Traceback' not in res.stderr, res.stderr
    assert len(res.stderr.strip().splitlines())==1, res.stderr

@pytest.mark.parametrize('kw,words', [(dict(arch='resnet81'), "did you mean 'resnet18'?"), (dict(steps='5,q'), "'q' in the steps"), (dict(share=3.), 'share=3.0'),
    (dict(fill='blakc'), 'No fill is called'), (dict(out='/proc/none', pretrained=False), 'cannot be made'), (dict(recipe='none', area=.1), 'has no use for area'), (dict(recipe='masktun'), "did you mean 'masktune'?"),
    (dict(steps='2,p,2', epochs=3), 'this fit has 3'), (dict(valid_pct=2.), 'valid_pct=2.0'), (dict(bs=0), 'bs=0'), (dict(size=2.5), 'size=2.5'),
    (dict(recipe='shortcut', epochs=1), 'has no proxy step'), (dict(out='{path}/runs'), 'nothing is ever written there'), (dict(arch='alexnet', size=8, pretrained=False), 'does not work on images of 8×8')])
def test_errors_are_sentences(path, kw, words):
    kw = {k:v.format(path=path) if isinstance(v, str) else v for k,v in kw.items()}
    with pytest.raises(CliError, match=re.escape(words)) as e: proxy_train(str(path), **kw)
    assert '\n' not in str(e.value)

def test_ctrl_c(path, tmp_path):
    log = open(tmp_path/'log', 'w+')
    p = subprocess.Popen([bin/'proxy-train', path, '--arch', 'resnet10t', '--epochs', '50', '--pretrained', 'no', '--size', '32', '--workers', '0', '--out', tmp_path/'runs'], stdout=log, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a shell may have us started with Ctrl-C ignored
    while 'Epoch 2/' not in (tmp_path/'log').read_text(): time.sleep(.1)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=30)
    assert p.returncode==130 and 'Go on with: proxy-train --resume' in err, (p.returncode, err)
    o, = (tmp_path/'runs').iterdir()
    assert not (o/'model.pkl').exists() and (o/'checkpoints'/'last.pth').exists()

def small(path, tmp_path, *more): return ('proxy-train', path, '--arch', 'resnet10t', '--pretrained', 'no', '--size', 32, '--workers', 0, '--out', tmp_path/'runs', *more)
def weights_of(run): return load_learner(run/'model.pkl').model.state_dict()

def test_killed_and_gone_on_with(path, tmp_path, same):
    "kill -9 in the middle of the third epoch; the run that goes on ends with the same bits, and so does its log"
    args = ('--steps', '1,p,3', '--share', 50, '--lr', '3e-3')
    assert run(*small(path, tmp_path/'whole', *args, '--quiet')).returncode==0
    p = subprocess.Popen([bin/'proxy-train', *map(str, small(path, tmp_path/'cut', *args)[1:])], stdout=open(tmp_path/'log', 'w'), stderr=subprocess.DEVNULL)
    while 'Epoch 3/' not in (tmp_path/'log').read_text(): time.sleep(.05)
    p.kill(); p.wait()
    (whole,),(cut,) = ((tmp_path/o/'runs').iterdir() for o in ('whole','cut'))
    res = run('proxy-train', '--resume', cut, '--json')
    assert res.returncode==0 and json.loads(res.stdout)['run']==str(cut), res.stderr
    assert same(weights_of(whole), weights_of(cut))
    for o in ('history.csv','proxy_log.csv'): assert pd.read_csv(whole/o).drop(columns='file', errors='ignore').equals(pd.read_csv(cut/o).drop(columns='file', errors='ignore'))
    assert (whole/'heat.npz').exists() and np.array_equal(HeatmapStore.load(whole/'heat.npz').grids, HeatmapStore.load(cut/'heat.npz').grids)

def test_config_again_and_runs(path, tmp_path):
    "A run's config.toml runs it again, options override it, and `proxy-runs` lists both"
    res = run(*small(path, tmp_path, '--steps', '1,p,1', '--share', 20, '--json'))
    assert res.returncode==0 and len(res.stdout.splitlines())==1, res.stdout+res.stderr
    first = json.loads(res.stdout)
    res = run('proxy-train', '--config', Path(first['run'])/'config.toml', '--out', tmp_path/'runs', '--recipe', 'late', '--quiet')
    assert res.returncode==0 and not res.stdout, res.stdout+res.stderr
    table = json.loads(run('proxy-runs', tmp_path/'runs', '--json').stdout)
    assert len(table)==2 and {o['recipe'] for o in table}=={'default','late'} and first['accuracy'] in [round(o['accuracy'], 6) for o in table]
    assert run('proxy-runs', tmp_path/'runs').stdout.count('resnet10t')==2
    (tmp_path/'bad.toml').write_text('[model]\nach = "resnet18"')
    res = run('proxy-train', path, '--config', tmp_path/'bad.toml')
    assert res.returncode==1 and "did you mean 'arch'?" in res.stderr and len(res.stderr.strip().splitlines())==1

def test_folds_and_explain(path, tmp_path, fingerprint):
    "Cross-validation, and two of its models side by side on new images"
    before = fingerprint(path)
    res = run(*small(path/'train', tmp_path, '--steps', '1,p,1', '--folds', 2))
    assert res.returncode==0 and 'mean ± standard deviation' in res.stdout, res.stderr
    o, = (tmp_path/'runs').iterdir()
    assert len(pd.read_csv(o/'folds_result.csv'))==2 and (pd.read_csv(o/'folds.csv').fold.value_counts()==128).all()
    res = run('proxy-explain', o/'fold_0'/'model.pkl', path/'plain'/'3', '--against', o/'fold_1'/'model.pkl', '--out', tmp_path/'seen')
    assert res.returncode==0, res.stderr
    seen, = (tmp_path/'seen').iterdir()
    assert len(pd.read_csv(seen/'predictions.csv'))==len(get_image_files(path/'plain'/'3')) and (seen/'sheet_001.png').exists() and fingerprint(path)==before
    assert 'runs the code in it' in ' '.join(run('proxy-explain', '--help').stdout.split())

def test_rate_and_batch_size_are_found(path, tmp_path, monkeypatch):
    "`find_lr` asks fastai; `find_bs` halves until a step fits (here: no more than 8 images do)"
    import proxy_attention.train as t
    told,usual = [],t.arch_learner
    def small_memory(*args):
        learn = usual(*args)
        forward = learn.model.forward
        def limited(x):
            if learn.model.training and len(x)>8: raise RuntimeError('CUDA out of memory. Tried to allocate')
            return forward(x)
        learn.model.forward = limited
        return learn
    assert t.largest_batch(lambda bs: small_memory(lambda: ImageFolder(path).dataloaders(bs=bs, num_workers=0, item_tfms=Resize(32)), 'resnet10t', 32, False), 32)==8
    run = t.train_folder(path, arch='resnet10t', pretrained=False, size=32, workers=0, out=tmp_path/'runs', recipe='none', epochs=1, find_lr=True, find_bs=True, bs=64, augment='strong', say=told.append)
    assert any('lr_find suggests a rate of' in o for o in told) and (run/'model.pkl').exists()
    with pytest.raises(ValueError, match="did you mean 'strong'?"): t.train_folder(path, augment='stong')
