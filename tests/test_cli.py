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
    res = run('proxy-train', path.name, '--arch', 'resnet10t', '--steps', '1,p,1', '--no-pretrained', '--size', 32, '--workers', 0, '--out', tmp_path/'runs', '--save-images', '--share', .5, cwd=path.parent) # a relative path, as people type it
    assert res.returncode==0, res.stderr
    assert fingerprint(path)==before
    o, = (tmp_path/'runs').iterdir()
    assert {'config.json','split.csv','history.csv','proxy_log.csv','proxy_steps.csv','heat.npz','manifest.csv','proxies','proxies.png','model.pkl'} <= set(os.listdir(o))
    assert json.loads((o/'config.json').read_text())['steps']=='1,p,1'
    assert len(pd.read_csv(o/'history.csv'))==2
    learn = load_learner(o/'model.pkl')
    with learn.no_bar(): assert learn.predict(get_image_files(path/'plain')[0])[0] in learn.dls.vocab

@pytest.mark.parametrize('args,words', [
    (['nowhere'], 'There is no folder nowhere'), (['{path}','--arch','resnet10t','--out','{tmp}'], 'pretrained weights of resnet10t cannot be had here')])
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
    p = subprocess.Popen([bin/'proxy-train', path, '--arch', 'resnet10t', '--epochs', '50', '--no-pretrained', '--size', '32', '--workers', '0', '--out', tmp_path/'runs'], stdout=log, stderr=subprocess.PIPE, text=True,
                         preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)) # a shell may have us started with Ctrl-C ignored
    while 'Epoch 2/' not in (tmp_path/'log').read_text(): time.sleep(.1)
    p.send_signal(signal.SIGINT)
    _,err = p.communicate(timeout=30)
    assert p.returncode==130 and err.strip().endswith('Stopped.'), (p.returncode, err)
