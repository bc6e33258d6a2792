"The commands as a user types them: one from a cold start, the others from warm processes"
import json, os, re, resource, shlex, shutil, signal, subprocess, sys, time
from concurrent.futures import ThreadPoolExecutor
from functools import partialmethod
from typing import Literal
import pytest, warm
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.core import ProxyWarning, new_run
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.experiment.config import Config, DataConfig, FitConfig, all_settings, changed, from_toml, to_toml
from proxy_attention.experiment.runs import run_state
from proxy_attention.experiment.settings import begun_with, check_config, fit_length
from proxy_attention.experiment.inputs import look_at
from proxy_attention.experiment.train import resume_run
import proxy_attention.cli as cli
from proxy_attention.cli import CliError, asked, command, parser_of, proxy_compare, proxy_runs, proxy_train
from proxy_attention.experiment.demo import verdict

pytestmark = pytest.mark.limit(170)
root = Path(__file__).parent.parent

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
            'manifest.csv','proxies','proxies.png','model.safetensors','identity.json','recipe.txt'} <= set(os.listdir(o))
    assert from_toml(o/'config.toml').proxy.steps=='1,p,1'
    assert len(pd.read_csv(o/'history.csv'))==2
    learn = load_run(o)
    with learn.no_bar(): assert learn.predict(get_image_files(path/'plain')[0])[0] in learn.dls.vocab

# ---- what a command says of itself

commands = [o for k,o in vars(cli).items() if k.startswith('proxy_') and hasattr(o, 'prog')]

def options(f):
    "The options of a command that its help shows"
    return [o for o in parser_of(f)._actions if o.option_strings and o.help!='==SUPPRESS==']

# a line of help says what its value is: no riddle, no word of ours for a word of the field, no passive fragment
riddles = re.compile(r'^(of|nor|between|where|what (?!to explain)|whether|also (?!export)|part|not?)\b|'
    r'\bat most\b|\bso (many|much)\b|there are:|'
    r'\b(go|goes|gone) on\b|\bby itself\b|\bshares? of\b|\bchance\b|heat map\b|\blooked? (at|for)\b|\blies?\b|'
    r'\b(is|are) (kept|shown|printed|loaded|exported)\b|\bas \w+ (chooses|calls|says)\b', re.I)

@pytest.mark.parametrize('line', [
    'Of what: label, pred, margin', 'Nor less than this', 'Between two steps: a share of the fit', 'Share of the image that is masked',
    'Number of pictures at most', 'Layer that a CAM looks at, by its name in the model (default: found by itself)',
    'Folder of the sweep; the same command again goes on with it', 'Names of arms. There are: no proxy, cutout',
    'Nothing is printed', 'Batch size (default: as fastai chooses)', 'Folder that the images lie in now',
    'Chance that a chosen item is served as a proxy', "Number of the heat map's cells that are masked"])
def test_a_riddle_is_seen(line): assert riddles.search(line)

@pytest.mark.parametrize('argv,flag', [
    ('photos --tests a=x --tests b=y','--tests'), ('photos --n_per_class 2 --n-per-class=3','--n-per-class'),
    ('photos --pretrained no --pretrained','--pretrained')])
def test_an_option_that_is_given_twice_is_refused(argv, flag, capsys):
    "Only the last value would be used, and a test set would be lost without a word"
    with pytest.raises(SystemExit): asked(proxy_train, argv.split())
    assert capsys.readouterr().err==f'{flag} is given twice, and only the last value would be used: give it once.\n'

def test_what_is_no_value_may_be_repeated():
    assert asked(proxy_train, 'photos --quiet --quiet --lr .1 --wd .1'.split())==dict(path='photos', quiet=True, lr=.1, wd=.1)

def test_a_folder_as_configuration_and_a_byte_order_mark(tmp_path):
    with pytest.raises(IsADirectoryError, match='is a folder: give a TOML file, such as .*config.toml'): from_toml(tmp_path)
    (tmp_path/'a.toml').write_bytes(b'\xef\xbb\xbf[fit]\r\nepochs = 2\r\n')
    assert from_toml(tmp_path/'a.toml').fit.epochs==2

@pytest.mark.parametrize('test,says', [
    ('waterbirds', 'published test images of waterbirds are given with their folder: t=waterbirds:folder'),
    ('waterbird:photos', "is called 'waterbird', did you mean 'waterbirds'"), ('nowhere/photos', "nowhere/photos for the test set 't'.$")])
def test_a_misspelt_published_test_set(test, says):
    with pytest.raises(FileNotFoundError, match=says): check_config(changed(Config(), tests=f't={test}'))

@pytest.mark.parametrize('f', commands, ids=lambda f: f.prog)
def test_help(f):
    "Each line is a phrase of plain English, with its default"
    assert f.prog in {o.split('=')[0].strip() for o in (root/'settings.ini').read_text(encoding='utf-8').splitlines()}
    text = parser_of(f).format_help()
    assert not riddles.search(f.__doc__), f.__doc__
    assert text.startswith(f'usage: {f.prog} ') and f'{f.__doc__.split()[0]} ' in text and max(map(len, text.splitlines()))<=110
    for o in parser_of(f)._actions:
        if o.help=='==SUPPRESS==': continue
        assert o.help[0].isupper() and len(o.help.split())>1 and o.help[-1]!='.' and '{' not in o.help, (o.dest, o.help)
        assert not (odd := riddles.search(o.help)), (o.dest, o.help, odd[0])
        said = '(default: ' in o.help or 'has to be given' in o.help or o.dest in ('help','version') or not o.option_strings
        assert said, (o.dest, o.help)

def test_help_is_in_groups():
    groups = {g.title:[o.dest for o in g._group_actions] for g in parser_of(proxy_train)._action_groups}
    assert list(groups)[2:]==['Data','Model','Training','Proxies','Proxies: when','Proxies: which images',
        'Proxies: where the model looks','Proxies: how images are masked','Proxies: how they are served','Output']
    found = {k for title,o in groups.items() for k in o if title not in ('positional arguments','options','Output')}
    assert found|{'path','save_images'}==set(all_settings(Config())) and groups['Output']==['out','export','quiet','json','save_images']
    needs = {o.dest:o.help for o in options(proxy_train)}
    for k,words in dict(area='--rule area, random or centre', keep='--rule rest or random_rest', cells='--rule top_cells',
                        k='--rule mean_std',
                        weight='--fill blend', radius='--fill blur').items(): assert f'only with {words} (default' in needs[k]

def test_an_argument_of_the_function_is_an_option():
    @command
    def proxy_new(
        a:int=3, # Number of things
        b_c:bool=False, # Things are counted
        d:Literal['x','y']=None, # Thing that is meant: x or y (default: none)
        e:bool=True, # Things are kept
        g:int=None, # Number of others (default: 7)
    ):
        "Do something new"
    assert [o.option_strings for o in options(proxy_new)[2:]]==[['--a'],['--b-c'],['--d'],['--e'],['--g']]
    assert asked(proxy_new, ['--b_c','--a=4','--d','y'])==dict(a=4, b_c=True, d='y') and asked(proxy_new, [])=={}
    assert asked(proxy_new, ['--no-e'])==dict(e=False)
    assert [o.help for o in options(proxy_new)[2:]]==['Number of things (default: 3)', 'Things are counted (default: no)',
        'Thing that is meant: x or y (default: none)', 'Things are kept (default: yes)', 'Number of others (default: 7)']
    with pytest.raises(SystemExit): asked(proxy_new, ['--d','z'])

cold = '''
import json, sys
import proxy_attention.cli as cli
from proxy_attention.core import names_in
from proxy_attention.experiment.config import _names
said = {k:v for k,v in _names().items()} | {k:names_in(*v) for k,v in cli._named.items()} | dict(arms=cli.arm_names())
for o in [o for o in vars(cli).values() if hasattr(o, 'prog')]: cli.parser_of(o).format_help()
try: cli.run_line(cli.proxy_runs, [sys.argv[1]])
finally: print(json.dumps(dict(said=said, heavy=sorted({'torch','fastai','matplotlib','optuna','captum','sklearn'} & set(sys.modules)))))
'''

def test_help_and_runs_need_no_torch_and_know_every_name(tmp_path):
    "From a cold start: names are read from the source, and are those that the modules have"
    from proxy_attention.attribution.targets import targets
    from proxy_attention.experiment.arms import arms
    from proxy_attention.experiment.sweep import pruners, samplers
    from proxy_attention.data.networks import augments
    from proxy_attention.masking.donors import donors
    from proxy_attention.masking.labels import labelings
    from proxy_attention.masking.fills import fills
    from proxy_attention.masking.rules import rules
    from proxy_attention.proxy.selection import selections
    res = subprocess.run([sys.executable, '-c', cold, tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert res.returncode==0 and not res.stderr, res.stderr
    *shown,last = res.stdout.splitlines()
    got = json.loads(last)
    assert shown==[f'No run in {tmp_path}.'] and not got['heavy']
    there = dict(recipes=recipes, selections=selections, rules=rules, fills=fills, donors=donors, labelings=labelings, targets=targets,
                 augment=augments, sampler=samplers, pruner=pruners, arms=arms)
    assert {k:sorted(v) for k,v in got['said'].items()}=={k:sorted(v) for k,v in there.items()}

def test_a_name_that_cannot_be_read_is_an_error(tmp_path, monkeypatch):
    from proxy_attention.core import names_in
    monkeypatch.delitem(sys.modules, 'proxy_attention.masking.fills')
    assert 'swap' in names_in('masking.fills', 'fills') and 'proxy_attention.masking.fills' not in sys.modules
    with pytest.raises(LookupError, match='No names are found in filling of proxy_attention.masking.fills'):
        names_in('masking.fills', 'filling')

def cpu(*args):
    "A command from a cold start: what it came to, and seconds of processor time"
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    res = run_cold(*args)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return res,after.ru_utime+after.ru_stime-before.ru_utime-before.ru_stime

@pytest.mark.parametrize('args,words', [
    (('proxy-train','--help'), 'usage: proxy-train [path] [options]'), (('proxy-sweep','--version'), 'proxy-sweep 0.'),
    (('proxy-runs','{tmp}'), 'No run in')])
def test_an_answer_takes_no_two_seconds(args, words, tmp_path):
    res,seconds = cpu(*[o.format(tmp=tmp_path) for o in args])
    assert res.returncode==0 and words in res.stdout and not res.stderr and seconds<2, (seconds, res)

# ---- what is typed

def test_each_way_to_say_it(capsys):
    for said,kw in {'photos --no-pretrained':dict(path='photos', pretrained=False), '--pretrained no':dict(pretrained=False),
                    '--pretrained=Yes':dict(pretrained=True), '--fp16':dict(fp16=True), '--no-fp16':dict(fp16=False),
                    '--n_per_class=3 --valid_pct .5':dict(n_per_class=3, valid_pct=.5), '--workers -1':dict(workers=-1),
                    '--share 20':dict(share=20),
                    '--wd -0.5 photos':dict(wd=-.5, path='photos'), '--share 0.2':dict(share=.2), '--recipe none':dict(recipe='none'),
                    '--save-images --quiet':dict(save_images=True, quiet=True), '--arch some_name':dict(arch='some_name')}.items():
        assert asked(proxy_train, said.split())==kw, said
    assert isinstance(asked(proxy_train, ['--share','20'])['share'], int)
    assert asked(proxy_compare, ['a','--n_jobs','2'])==asked(proxy_compare, ['--n-jobs=2','a'])==dict(path='a', n_jobs=2)
    assert not set(asked(proxy_compare, ['a','--seed','2'])) & {'seeds'}

def test_each_line_of_the_readme_can_be_typed():
    lines = [o for o in (root/'README.md').read_text(encoding='utf-8').splitlines() if o.startswith('proxy-')]
    said = [asked(vars(cli)[name.replace('-','_')], args) for name,*args in (shlex.split(o, comments=True) for o in lines)]
    assert len(said)>9 and all(said) and dict(root='runs', sort='-accuracy') in said

@pytest.mark.parametrize('said,words', [
    ('--epoch 3', "There is no option --epoch, did you mean '--epochs'? `proxy-train --help` lists them all."),
    ('a b', "The argument 'b' is not expected"), ('--bs', '--bs needs a value.'), ('--bs -h', '--bs needs a value.'),
    ('--steps --bs 4', '--steps needs a value.'), ('--bs 1.5', "--bs: '1.5' is not a whole number."),
    ('--lr fast', "--lr: 'fast' is not a number."), ('--start none5', "--start: 'none5' is not a number."),
    ('--pretrained maybe', "--pretrained: 'maybe' is neither yes nor no."),
    ('--n_per_class x', "--n-per-class: 'x' is not a whole number."),
    ('--fill sawp', "--fill: there is no 'sawp', did you mean 'swap'? Available: swap, swap_both,"),
    ('--augment strng', "--augment: there is no 'strng', did you mean 'strong'? Available: none, flips, default, strong."),
    ('--recipe masktun', "did you mean 'masktune'?"), ('--mode in', "Available: replace, augment.")])
def test_slips_are_one_sentence(said, words, capsys):
    with pytest.raises(SystemExit) as e: asked(proxy_train, said.split())
    out,err = capsys.readouterr()
    assert e.value.code==2 and words in err and not out and len(err.splitlines())==1

def test_slips_of_numbers(path, few, tmp_path):
    "They are known to be wrong before any image is read"
    out = dict(out=str(tmp_path/'runs'))
    with pytest.raises(CliError, match='bs=1 should be 2 or more: batch norm'): proxy_train('photos', bs=1, **out, **small)
    with pytest.raises(CliError, match='workers=-1 should be 0 or more'): proxy_train('photos', **(small|dict(workers=-1)), **out)
    with pytest.raises(CliError, match='seeds=0 should be 1 or more'): proxy_compare(str(few), seeds=0, **out, **small)
    assert not (tmp_path/'runs').exists()

@pytest.mark.parametrize('f', [o for o in commands if o.prog not in ('proxy-demo','proxy-runs')], ids=lambda f: f.prog)
def test_a_bare_command_says_how_it_is_used(f, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', [f'/somewhere/{f.prog}'])
    with pytest.raises(SystemExit) as e: f()
    out,err = capsys.readouterr()
    assert e.value.code==2 and not out and err.startswith(f'usage: {f.prog} ') and f'{f.prog} needs ' in err.splitlines()[1]

def test_a_command_reads_the_line_only_for_its_script(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, 'argv', ['/somewhere/proxy-runs', str(tmp_path)])
    proxy_runs()
    assert capsys.readouterr().out==f'No run in {tmp_path}.\n'
    monkeypatch.setattr(sys, 'argv', ['/somewhere/jupyter', '--odd'])
    monkeypatch.chdir(tmp_path)
    with pytest.raises(CliError, match='There is no folder runs'): proxy_runs()

def test_a_refusal_ends_with_2_and_its_traceback_is_there_if_asked(tmp_path, monkeypatch, capsys):
    with pytest.raises(SystemExit) as e: cli.run_line(proxy_runs, [str(tmp_path/'no')])
    out,err = capsys.readouterr()
    assert e.value.code==2 and not out and len(err.splitlines())==1 and 'There is no folder' in err
    monkeypatch.setenv('PROXY_TRACEBACK', '1')
    with pytest.raises(FileNotFoundError, match='There is no folder'): cli.run_line(proxy_runs, [str(tmp_path/'no')])

def test_what_a_shell_completes(tmp_path):
    "As argcomplete's function for bash asks"
    def offered(line):
        env = os.environ|dict(_ARGCOMPLETE='1', _ARGCOMPLETE_STDOUT_FILENAME=str(tmp_path/'said'), _ARGCOMPLETE_IFS='\n',
                              COMP_LINE=line, COMP_POINT=str(len(line)), COMP_TYPE='9')
        assert run_cold('proxy-train', env=env).returncode==0
        return [o.strip() for o in (tmp_path/'said').read_text().splitlines()]
    assert offered('proxy-train --fill sw')==['swap','swap_both','swap_shared','swap_theirs']
    assert offered('proxy-train --pretr')==['--pretrained']

@pytest.mark.parametrize('run,args,words', [
    (run, ['nowhere'], 'There is no folder and no CSV file nowhere'),
    (run_cold, ['{path}','--arch','resnet10t','--out','{tmp}'], 'train from scratch with `pretrained=False` (`--pretrained no`)')
], ids=['folder','weights'])
def test_errors_are_one_line_on_the_terminal(path, tmp_path, run, args, words):
    res = run('proxy-train', *[o.format(path=path, tmp=tmp_path) for o in args],
              env=os.environ|dict(HF_HUB_OFFLINE='1', HF_HOME=str(tmp_path/'hf')))
    assert res.returncode==2 and words in res.stderr and 'Traceback' not in res.stderr, res.stderr
    assert len(res.stderr.strip().splitlines())==1, res.stderr

@pytest.mark.parametrize('kw,words', [
    (dict(arch='resnet81'), "did you mean 'resnet18'?"), (dict(steps='5,q'), "'q' in the steps"), (dict(share=3.), 'share=3.0'),
    (dict(fill='blakc'), 'No fill is called'), (dict(out='/proc/none', pretrained=False), 'cannot be made'),
    (dict(recipe='shortcut', objects='x.csv'), 'does not run a probe'),
    (dict(recipe='probed', objects='no.csv'), 'no.csv: objects should be'),
    (dict(recipe='none', area=.1), 'cannot use area'), (dict(recipe='masktun'), "did you mean 'masktune'?"),
    (dict(steps='2,p,2', epochs=3), 'this fit has 3'), (dict(valid_pct=2.), 'valid_pct=2.0'),
    (dict(bs=0), 'bs=0'), (dict(size=2.5), 'size=2.5'),
    (dict(recipe='shortcut', epochs=1), 'has no proxy step'), (dict(out='{path}/runs'), 'nothing is ever written there'),
    (dict(arch='alexnet', size=8, pretrained=False), 'does not work on images of 8×8')])
def test_errors_are_sentences(path, kw, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kw = {k:v.format(path=path) if isinstance(v, str) else v for k,v in kw.items()}
    with pytest.raises(CliError, match=re.escape(words)) as e: proxy_train(str(path), **kw)
    assert '\n' not in str(e.value)

@pytest.mark.parametrize('run', [proxy_train, proxy_compare])
def test_a_folder_that_resuming_would_not_use_is_refused(run, tmp_path):
    with pytest.raises(CliError, match='--resume writes to the folder of the run, .* leave --out out'):
        run(resume=str(tmp_path), out=str(tmp_path/'other'))
    assert not (tmp_path/'other').exists()

@pytest.mark.parametrize('kw,words', [
    (dict(epochs=0), 'epochs=0 should be 1 or more'), (dict(epochs=-3), 'epochs=-3 should be 1 or more'),
    (dict(wd=-5.), 'wd=-5.0 should be a number from 0 to'), (dict(wd=np.nan), 'wd=nan should be a number from 0 to'),
    (dict(wd=np.inf), 'wd=inf should be a number from 0 to'), (dict(workers=-1), 'workers=-1 should be 0 or more'),
    (dict(lr=np.nan), 'lr=nan should be a number from'), (dict(lr=-1e-3), 'lr=-0.001 should be a number from'),
    (dict(lr=np.inf), 'lr=inf should be a number from'), (dict(discriminative=np.nan), 'discriminative=nan should be a number from'),
    (dict(bs=-2), 'bs=-2 should be 2 or more'), (dict(size=1), 'size=1 should be 2 or more'),
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

def test_numbers_of_a_table_are_numbers():
    "A loop over `np.arange`, or a row of a table, gives NumPy's own"
    cfg = changed(Config(), epochs=np.int64(5), lr=np.float32(.5), pretrained=np.bool_(False), share=np.int32(7))
    assert cfg==changed(Config(), epochs=5, lr=.5, pretrained=False, share=7) and 'epochs = 5' in to_toml(cfg)
    with pytest.raises(TypeError, match='epochs=5.5 should be a whole number'): changed(Config(), epochs=np.float32(5.5))

def test_what_is_not_a_number_is_null_in_json(tmp_path, monkeypatch, capsys):
    "`NaN` is no JSON: other programs than Python's refuse the whole line"
    run = tmp_path/'run'
    run.mkdir()
    (run/'history.csv').write_text('epoch,train_loss,valid_loss,accuracy\n0,inf,,0.5\n')
    monkeypatch.setattr('proxy_attention.experiment.train.train_folder', lambda *args, **kwargs: run)
    cli.run_line(proxy_train, ['photos','--json'])
    def odd(o): raise ValueError(f'{o} is no JSON')
    assert json.loads(capsys.readouterr().out, parse_constant=odd)==dict(run=str(run), train_loss=None, valid_loss=None, accuracy=.5)

def test_a_package_that_is_missing_is_one_sentence(monkeypatch, capsys):
    def train_folder(*args, **kwargs): raise ImportError('The option `find_bs` needs the package accelerate.')
    monkeypatch.setattr('proxy_attention.experiment.train.train_folder', train_folder)
    with pytest.raises(SystemExit) as e: cli.run_line(proxy_train, ['photos','--find-bs'])
    assert e.value.code==2 and capsys.readouterr().err=='The option `find_bs` needs the package accelerate.\n'

def test_ctrl_c(path, tmp_path):
    with warm.begin(warm.script, 'proxy-train', path, '--epochs', 50, *small_args, '--out', tmp_path/'runs', out=tmp_path) as p:
        until(p, tmp_path/'stdout', 'Epoch 2/')
        os.kill(p.pid, signal.SIGINT)
        p.join(30)
    err = (tmp_path/'stderr').read_text(encoding='utf-8')
    assert p.exitcode==130 and 'Resume with: proxy-train --resume' in err, (p.exitcode, err)
    o, = (tmp_path/'runs').iterdir()
    assert run_state(o)=='stopped' and (o/'checkpoints'/'last.pth').exists()

def weights_of(run): return load_run(run).model.state_dict()

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
    with pytest.raises(CliError, match='the folder has no config.toml'): proxy_train(resume=str(tmp_path))

def test_config_again_runs_and_explain(few, tmp_path, fingerprint, capsys):
    "A run's config.toml runs it again, options override it, `proxy-runs` lists both, `proxy-explain` shows them side by side"
    before = fingerprint(few)
    proxy_train(str(few), out=str(tmp_path/'runs'), steps='1,p,1', fill='mean', json=True, **small)
    out = capsys.readouterr().out
    first = json.loads(out)
    assert len(out.splitlines())==1
    proxy_train(config=str(Path(first['run'])/'config.toml'), out=str(tmp_path/'runs'),
                recipe='late', epochs=3, steps='1,p,2', quiet=True)
    said = capsys.readouterr().out
    a,b = sorted((tmp_path/'runs').iterdir())
    assert said==f'Run folder: {b}\n'
    assert from_toml(b/'config.toml')==changed(from_toml(a/'config.toml'), recipe='late', epochs=3, steps='1,p,2')
    proxy_runs(str(tmp_path/'runs'), json=True)
    table = json.loads(capsys.readouterr().out)
    assert (len(table)==2 and {o['recipe'] for o in table}=={'default','late'}
            and first['accuracy'] in [round(o['accuracy'], 6) for o in table])
    (tmp_path/'bad.toml').write_text('[model]\nach = "resnet18"')
    with pytest.raises(CliError, match="did you mean 'arch'?"): proxy_train(str(few), config=str(tmp_path/'bad.toml'))
    res = run_cold('proxy-explain', a, few/'plain'/'3', '--against', b, '--out', tmp_path/'seen') # what it imports has to do
    assert res.returncode==0, res.stderr
    seen, = (tmp_path/'seen').iterdir()
    assert (len(pd.read_csv(seen/'predictions.csv'))==len(get_image_files(few/'plain'/'3'))
            and (seen/'sheet_001.png').exists() and fingerprint(few)==before)
    res = run('proxy-runs', tmp_path/'runs')
    assert res.returncode==0 and res.stdout.count('test_resnet')==2, res.stderr

def test_the_same_again_with_one_thing_changed(few, tmp_path, monkeypatch, capsys):
    "The README's own line, word by word, for a run that had steps and more"
    line = next(o for o in (root/'README.md').read_text(encoding='utf-8').splitlines() if o.startswith('proxy-train --config'))
    first = train_folder(few, tmp_path/'runs', steps='1,p,2', share=8, fill='mean', save_images=True, say=noop, **small)
    said = shlex.split(line.split('#')[0])
    assert said==['proxy-train','--config','runs/…/config.toml','--recipe','none']
    res = run(*[str(first/'config.toml') if o=='runs/…/config.toml' else o for o in said], cwd=tmp_path)
    assert res.returncode==0, res.stderr
    assert 'the recipe none does not use them: steps, share, fill, save_images' in res.stdout and 'keeps its length: 3 epochs' in res.stdout
    again, = set((tmp_path/'runs').iterdir())-{first}
    a,b = (all_settings(from_toml(o/'config.toml')) for o in (first,again))
    assert b==a|dict(recipe='none', steps=None, share=None, fill=None, save_images=False, epochs=3)
    assert len(pd.read_csv(again/'history.csv'))==3
    with pytest.raises(CliError, match='cannot use share'): # what is asked for here is not left out
        proxy_train(config=str(first/'config.toml'), recipe='none', share=8, out=str(tmp_path/'runs'))
    toml = (first/'config.toml').read_text(encoding='utf-8').replace('recipe = "default"', 'recipe = "none"')
    (tmp_path/'odd.toml').write_text(toml, encoding='utf-8')
    with pytest.raises(CliError, match='cannot use steps'): proxy_train(config=str(tmp_path/'odd.toml'), out=str(tmp_path/'runs'))

def parsed(*args):
    "What a command line says, without running it"
    return {k:v for k,v in asked(proxy_train, args).items() if k in all_settings(Config())}

@pytest.mark.parametrize('how', ['none','None',''])
def test_a_value_is_unset_on_the_command_line(how):
    usual = all_settings(Config())
    asked = dict(steps='1,p,1', epochs=2, share=.3, balance=True, wd=.1, folds=3, fp16=False, area=.2, subset=.5, label_col='x',
                 save_images=True, lr=.1, bs=4, augment='none', pretrained=False)
    cfg = changed(Config(), **asked)
    for k,v in asked.items():
        if usual[k] is not None and how: continue # 'none' may be a name there; an empty value goes back to the usual one
        args = parsed(f'--{k.replace("_","-")}', how)
        assert list(args)==[k] and all_settings(changed(cfg, **args))==all_settings(cfg)|{k:usual[k]}, k
    assert parsed('--wd', '0.5', '--steps', '1,p,2', '--folds', '2', '--balance')==dict(wd=.5, steps='1,p,2', folds=2, balance=True)
    assert changed(Config(), recipe='none', augment='none')!=Config()

def test_what_is_neither_a_value_nor_none(capsys):
    for k,v in dict(wd='non', folds='2.5', balance='perhaps', lr='none').items():
        with pytest.raises(SystemExit): parsed(f'--{k}', v)
        err = capsys.readouterr().err
        assert f'--{k}: {v!r} is n' in err, err

def test_steps_are_unset_and_the_fit_keeps_its_length(tmp_path):
    (tmp_path/'config.toml').write_text(to_toml(changed(Config(), path='x', steps='2,p,3', arch='test_resnet')), encoding='utf-8')
    told = []
    cfg = begun_with(tmp_path/'config.toml', told.append, steps='none')
    assert (cfg.proxy.steps,cfg.fit.epochs)==(None,5) and 'keeps its length: 5 epochs' in told[-1]
    assert begun_with(tmp_path/'config.toml', told.append, steps='none', epochs=4).fit.epochs==4
    assert begun_with(tmp_path/'config.toml', told.append, steps='none', epochs='none').fit.epochs is None
    assert len(told)==1 and begun_with(tmp_path/'config.toml', told.append, lr=.1)==changed(from_toml(tmp_path/'config.toml'), lr=.1)
    assert begun_with(None, told.append, steps='1,p,1')==changed(Config(), steps='1,p,1') and len(told)==1

# ---- where things lie, and whose split it is

@pytest.fixture
def patients(few, tmp_path):
    "A CSV of digits whose column `set` keeps what belongs together on one side"
    d = tmp_path/'clinic'
    d.mkdir()
    files = sorted(get_image_files(few/'train'))
    rows = [(f'img/{i:02}.png', f.parent.name in '01234', 'train' if i%4 else ['val','test'][i//4%2]) for i,f in enumerate(files)]
    (d/'img').mkdir()
    for (name,*_),f in zip(rows, files): shutil.copyfile(f, d/name)
    pd.DataFrame(rows, columns=['file','label','set']).to_csv(d/'labels.csv', index=False)
    return d

def parts_of(run): return dict(pd.read_csv(run/'folds.csv')[['file','part']].values)

def test_a_column_of_parts(patients, tmp_path):
    "Named on the command line it is the split, and the output says so; not named, a note says that it is there"
    df = pd.read_csv(patients/'labels.csv').query("set!='test'")
    want = {Path(f).name:'valid' if o=='val' else 'train' for f,o in zip(df.file, df.set)}
    args = ('proxy-train', patients/'labels.csv', *small_args, '--recipe', 'none', '--epochs', 1, '--bs', 8)
    res = run(*args, '--valid-col', 'set', '--out', tmp_path/'named')
    assert res.returncode==0 and not res.stderr, res.stderr
    o, = (tmp_path/'named').iterdir()
    assert parts_of(o)==want and from_toml(o/'config.toml').data.valid_col=='set'
    assert "The column 'set' gives the training and validation images; rows with test are not used." in res.stdout
    res = run(*args, '--out', tmp_path/'drawn')
    assert res.returncode==0 and "has a column 'set' with the values val, train, test, which is not used" in res.stderr, res.stderr
    assert '--valid-col set' in res.stderr and len(res.stderr.strip().splitlines())==1
    o, = (tmp_path/'drawn').iterdir()
    assert len(parts_of(o))==64
    with pytest.raises(CliError, match="has no column 'sett', did you mean 'set'"):
        proxy_train(str(patients/'labels.csv'), valid_col='sett', **small)
    with pytest.raises(CliError, match="folds=3 draws its own split, but valid_col='set' gives one"):
        proxy_train(str(patients/'labels.csv'), valid_col='set', folds=3, **small)

@pytest.mark.filterwarnings('ignore:.*are left out:proxy_attention.core.ProxyWarning')
def test_the_split_of_a_run_is_given_back(few, tmp_path):
    "As its folder or its folds.csv; the run that takes it has the same one, whatever its seed"
    args = dict(recipe='none', epochs=1, say=noop, **small)
    a = train_folder(few, tmp_path/'runs', subset=.5, seed=3, **args)
    with pytest.warns(ProxyWarning, match='are not in .*folds.csv, so they are left out'):
        b = train_folder(few, tmp_path/'runs', split=a, seed=4, **args)
    assert (a/'folds.csv').read_bytes()==(b/'folds.csv').read_bytes() and from_toml(b/'config.toml').data.split==str(a/'folds.csv')
    told = []
    with pytest.warns(ProxyWarning, match='left out'): look_at(changed(Config(), path=few, split=a/'folds.csv'), told.append)
    assert f'The split is taken from {a/"folds.csv"}.' in told
    shutil.move(a, tmp_path/'gone')
    (b/'model.safetensors').unlink()
    with pytest.warns(ProxyWarning, match='left out'): resume_run(b, say=noop) # it has its own copy
    assert (b/'model.safetensors').exists()
    f = tmp_path/'gone'/'folds.csv'
    for kw,says in ((dict(split=f, subset=.5), 'subset'), (dict(split=f, n_per_class=3), 'n_per_class'),
                    (dict(split=f, valid_col='x'), 'valid_col'), (dict(split=f, folds=2), 'does not contain 2 folds'),
                    (dict(split=tmp_path/'no'), 'There is no split'),
                    (dict(split=few), 'There is no split')):
        with pytest.raises((ValueError,FileNotFoundError), match=says) as e: train_folder(few, tmp_path/'no', **(args|kw))
        assert len(str(e.value).splitlines())==1
    with pytest.raises(ValueError, match='is the split of a run: give the images themselves, and pass this file as `split`'):
        train_folder(f, tmp_path/'no', **args)

def test_folds_are_given_back(path, tmp_path):
    args = dict(recipe='none', epochs=1, bs=16, say=noop, **small)
    a = train_folder(path/'valid', tmp_path/'runs', folds=2, **args)
    b = train_folder(path/'valid', tmp_path/'runs', folds=2, split=a, **(args|dict(seed=9)))
    assert (a/'folds.csv').read_bytes()==(b/'folds.csv').read_bytes()

def test_a_run_is_gone_on_with_from_elsewhere(few, tmp_path, monkeypatch):
    "Paths are kept whole; and a project that was moved as one is found again"
    project = tmp_path/'project'
    shutil.copytree(few, project/'photos')
    monkeypatch.chdir(project)
    args = dict(recipe='none', epochs=1, say=noop, **small)
    a = train_folder('photos', 'runs', **args)
    assert a.parts[0]=='runs' and from_toml(a/'config.toml').data.path==str(project/'photos')
    (a/'model.safetensors').unlink()
    monkeypatch.chdir(tmp_path)
    resume_run(project/a, say=noop)
    assert (project/a/'model.safetensors').exists()
    project.rename(tmp_path/'moved')
    for old in (str(project/'photos'), 'photos'): # as it is kept, and as it once was
        o = tmp_path/'moved'/a
        o.joinpath('config.toml').write_text(to_toml(changed(from_toml(o/'config.toml'), path=old)), encoding='utf-8')
        (o/'model.safetensors').unlink()
        told = []
        resume_run(o, say=lambda s: told.append(s))
        assert (o/'model.safetensors').exists() and f'The images are read from {tmp_path/"moved"/"photos"}' in '\n'.join(told)
    shutil.rmtree(tmp_path/'moved'/'photos')
    (o/'model.safetensors').unlink()
    with pytest.raises(FileNotFoundError, match='There is no folder and no CSV file'): resume_run(o, say=noop)

def test_paths_that_are_kept_whole(tmp_path, monkeypatch):
    (tmp_path/'a'/'b').mkdir(parents=True)
    (tmp_path/'a'/'x.csv').write_text('f,l')
    (tmp_path/'link.csv').symlink_to(tmp_path/'a'/'x.csv')
    monkeypatch.chdir(tmp_path/'a')
    monkeypatch.setenv('HOME', str(tmp_path))
    for said,kept in {'b':'a/b', '.':'a', '..':'', '~/a':'a', 'x.csv':'a/x.csv', '../link.csv':'link.csv'}.items():
        assert changed(Config(), path=said).data.path==str(tmp_path/kept), said
    assert changed(Config(), path='mnist:b').data.path==f'mnist:{tmp_path/"a"/"b"}'
    for said in ('mnist','mnist:nowhere','nowhere','x'*5000,'a\0b'): assert changed(Config(), path=said).data.path==said

def test_a_tilde_is_the_home_of_whoever_runs_it(few, patients, tmp_path):
    "Shells do not read it in `--out=~/runs`"
    home,here = tmp_path/'home',tmp_path/'here'
    here.mkdir(); home.mkdir()
    def at_home(*args): return run(*args, cwd=here, env=os.environ|dict(HOME=str(home)))
    for args in (('proxy-train', few, *small_args, '--recipe', 'none', '--epochs', 1, '--out=~/runs/a'),
                 ('proxy-demo', '--epochs', 2, '--n', 300, '--out=~/runs/b')):
        res = at_home(*args)
        assert res.returncode==0, res.stderr
    assert not list(here.iterdir()) and sorted(o.name for o in (home/'runs').iterdir())==['a','b']
    o, = (home/'runs'/'a').iterdir()
    for args in (('proxy-runs', '~/runs'), ('proxy-train', f'--resume=~/runs/a/{o.name}'),
                 ('proxy-explain', f'~/runs/a/{o.name}', few/'plain'/'3', '--out=~/runs/c'),
                 ('proxy-train', f'--config=~/runs/a/{o.name}/config.toml', '--out=~/runs/d'),
                 ('proxy-compare', few, *small_args, '--epochs', 2, '--seeds', 1, '--arms', 'no proxy', '--out=~/runs/e'),
                 ('proxy-sweep', few, *small_args, '--space', 'lr=0.01,0.001', '--trials', 1, '--epochs', 1,
                  '--recipe', 'none', '--out=~/runs/f')):
        res = at_home(*args)
        assert res.returncode==0, (args, res.stderr)
    assert not list(here.iterdir()) and sorted(o.name for o in (home/'runs').iterdir())==list('abcdef')

def test_folds_and_a_cut_in_the_second(path, tmp_path, monkeypatch):
    "Each image is in validation once; a run that is stopped in its second fold ends with the same table"
    import proxy_attention.experiment.learner as t
    told,usual,made = [],t.arch_learner,[]
    args = dict(steps='1,p,1', folds=2, bs=16, say=told.append, **small)
    o = train_folder(path/'valid', tmp_path/'runs', **args)
    assert (pd.read_csv(o/'folds.csv').fold.value_counts()==32).all() and 'Mean ± standard deviation' in told[-1]
    class Stop(Callback):
        def after_batch(self):
            if self.training and self.epoch==1: raise KeyboardInterrupt
    def stopping(*args):
        made.append(usual(*args))
        return made[-1].add_cb(Stop()) if len(made)==2 else made[-1]
    monkeypatch.setattr(t, 'arch_learner', stopping)
    with pytest.raises(KeyboardInterrupt, match='Resume with: proxy-train --resume'):
        train_folder(path/'valid', tmp_path/'cut', **args)
    cut, = (tmp_path/'cut').iterdir()
    assert resume_run(cut, told.append)==cut
    assert len(made)==3, 'the fold that was finished is not made again'
    a,b = (pd.read_csv(x/'folds_result.csv') for x in (o,cut))
    assert len(a)==2 and a.equals(b)

def test_rate_and_batch_size_are_found(path, tmp_path, same, monkeypatch, capsys):
    "`find_lr` asks fastai; `find_bs` halves until a step fits (here: no more than 8 images do)"
    import proxy_attention.experiment.learner as t
    import proxy_attention.experiment.train as train
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
    assert any('lr_find suggests a learning rate of' in o for o in told)
    assert not capsys.readouterr().out, 'no bar of `lr_find` either'
    with monkeypatch.context() as m: # another rate, such as a GPU may find the second time, would be another run
        m.delattr(Learner, 'lr_find'); m.delattr(train, 'largest_batch')
        (run/'model.safetensors').unlink()
        assert same(weights_of(resume_run(run, noop)), model)
    monkeypatch.setattr(t, 'arch_learner', None)
    assert resume_run(run, told.append)==run and 'is finished' in told[-1]
    with pytest.raises(ValueError, match="did you mean 'strong'?"): train_folder(path, augment='stong')

@pytest.mark.parametrize('given,recipe', [
    ({}, 'probed'), (dict(save_images=True, objects='boxes.csv'), 'probed'), (dict(suspect='runs/a'), 'rehearsed'),
    (dict(area=.2), 'default'), (dict(balance=True), 'default'), (dict(p=0.), 'default'),
    (dict(suspect='runs/a', steps='p,2'), 'default'), (dict(suspect='runs/a', area=.2), 'rehearsed'),
    (dict(recipe='late'), 'late'), (dict(recipe='none', area=.2), 'none'), (dict(recipe=''), 'probed')])
def test_the_recipe_where_none_is_given(given, recipe):
    assert changed(Config(), **given).proxy.chosen==recipe

def test_a_run_begins_with_the_recipe_probed(few, tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter('ignore', ProxyWarning)
        run = train_folder(few, tmp_path/'runs', epochs=2, say=noop, **small)
    assert from_toml(run/'config.toml').proxy.recipe=='probed'

def test_the_demo_tells_a_loss_of_accuracy_in_points():
    table = pd.DataFrame([dict(flipped=.02, plain=.99), dict(flipped=.99, plain=.9)], index=['without','with proxies'])
    assert 'loses 9.0 points of accuracy' in verdict(table)

def test_a_refused_demo_leaves_no_folder(tmp_path):
    from proxy_attention.experiment.demo import run_demo
    with pytest.raises(ValueError, match='n=5 should be 20 or more'): run_demo(tmp_path, n=5)
    assert not [*tmp_path.iterdir()]
