"A report as one HTML file: complete, true, harmless; for any state of a run folder, and in a real browser"
import base64, errno, io, json, pickle, re, shutil, tomli
from collections import Counter
from html.parser import HTMLParser
import pytest, warm
from scipy.stats import ttest_rel
from fastcore.xml import P
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention.data.loaders import whole_dl
from proxy_attention.attribution.heatmap import HeatmapStore, resize_heat
from proxy_attention.attribution.methods import heat_of
from proxy_attention.masking.fills import noise
from proxy_attention.proxy.selection import choose
from proxy_attention.experiment.arms import arms
from proxy_attention.experiment.config import Config, changed, from_toml, to_toml
from proxy_attention.core import hold_folder, let_go, short_text
from proxy_attention.report import build, page, sections
from proxy_attention.report.build import usual_sections
from proxy_attention.report.folder import RunFolder, open_runs, run_titles
from proxy_attention.experiment.runs import Runs, run_state, runs_table
from proxy_attention.report.look import Shot, heat_moved
from proxy_attention.report.sections import foremost, run_again
from proxy_attention.cli import CliError, proxy_report
from browser import Page, chromium

pytestmark = pytest.mark.limit(170)
in_browser = pytest.mark.skipif(chromium is None, reason='there is no chromium here to open the page in')
tiny = dict(arch='test_resnet', pretrained=False, size=64, workers=0, bs=20, augment='none', say=noop)
nasty = ["</style><script>alert('1')</script>", '"><img src=x onerror=alert(2)>', "a&amp;b's", 'naïve 猫 שלום', '\u202egnp.exe']

class Tree(HTMLParser):
    "Every tag with its attributes and text; what is not closed, or closes nothing, is an error"
    void = set('area base br col embed hr img input link meta source track wbr'.split())
    def __init__(self, text):
        super().__init__()
        self.open,self.all,self.wrong = [],[],[]
        self.feed(text)
        self.wrong += [f'<{o[0]}> is not closed' for o in self.open]
    def handle_starttag(self, tag, attrs):
        if len(dict(attrs))<len(attrs): self.wrong.append(f'<{tag}> has an attribute twice')
        o = (tag, dict(attrs), [])
        self.all.append(o)
        if tag not in self.void: self.open.append(o)
    def handle_endtag(self, tag):
        if not self.open or self.open.pop()[0]!=tag: self.wrong.append(f'</{tag}> closes nothing')
    def handle_data(self, data):
        for o in self.open: o[2].append(data)
    def __call__(self, tag, **attrs):
        return [o for o in self.all
            if o[0]==tag and all(o[1].get(k.rstrip('_').replace('_','-'))==v for k,v in attrs.items())]
    def text(self, o): return ' '.join(''.join(o[2]).split())

def tree(file):
    t = Tree(Path(file).read_text(encoding='utf-8'))
    assert not t.wrong, t.wrong[:5]
    return t

def words(file): return ' '.join(t.text(o) for t in [tree(file)] for o in t('main'))
def cells(t, caption):
    "The rows of the table of that caption, as text"
    start = next(i for i,o in enumerate(t.all) if o[0]=='caption' and caption in t.text(o))
    rows = []
    for o in t.all[start+1:]:
        if o[0]=='table': break
        if o[0]=='tr': rows.append([])
        if o[0] in ('td','th'): rows[-1].append(t.text(o))
    return rows
def opened(uri): return Image.open(io.BytesIO(base64.b64decode(uri.partition(',')[2])))

@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    "Three classes of 20 pictures; what is in the table has names that want to be markup"
    d = tmp_path_factory.mktemp('report')/'photos'
    d.mkdir()
    rng,rows = np.random.default_rng(0),[]
    for c,label in enumerate(nasty[:3]):
        for i in range(20):
            x = rng.integers(60, 150, (9,12,3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            x[10:34,10:34,c] = 255
            f = d/f'{c}_{i:02}{nasty[i%5].replace("/", "")}.png'
            Image.fromarray(x).save(f)
            rows.append((f.name, label))
    pd.DataFrame(rows, columns=['file','label']).to_csv(d.parent/'photos.csv', index=False)
    shutil.move(d.parent/'photos.csv', d/'photos.csv')
    return d

@pytest.fixture(scope='module')
def run(photos, tmp_path_factory):
    "A run with a proxy step"
    return train_folder(photos/'photos.csv', tmp_path_factory.mktemp('runs'), steps='1,p,1', share=12, fill='zero', lr=5e-3,
                        export=True, **tiny)

@pytest.fixture(scope='module')
def made(run): return report_runs(run, quiet=True)

@pytest.fixture
def copy_of(run, tmp_path):
    return lambda name='copy': Path(shutil.copytree(run, tmp_path/name, ignore=shutil.ignore_patterns('report.html')))

@pytest.fixture
def old_copy(copy_of):
    "As an earlier release left it"
    def f():
        d = copy_of()
        (d/'model.safetensors').unlink()
        return d
    return f

def test_page_is_complete_and_accessible(made):
    "Well-formed, nothing from elsewhere, headings in order, every picture described, every control named"
    t,text = tree(made),made.read_text(encoding='utf-8')
    for _,a,_ in t.all:
        for k in ('src','href','srcset','action','data','poster','style'):
            assert not a.get(k) or a[k].startswith(('data:','#')), (k,a[k][:80])
    style = t.text(t('style')[0])
    assert 'url(' not in style and '@import' not in style and not re.search(r'https?:', text), 'nothing is fetched, nor named'
    assert t('html')[0][1]['lang']=='en' and len(t('h1'))==len(t('main'))==1
    assert t.text(t('title')[0]).startswith('Report: default recipe on photos, 20')
    levels = [int(o[0][1]) for o in t.all if re.fullmatch('h[1-6]', o[0])]
    assert all(b<=a+1 for a,b in zip([0]+levels, levels))
    ids = [o[1]['id'] for o in t.all if 'id' in o[1]]
    assert (len(ids)==len(set(ids)) and {o[1]['href'][1:] for o in t('a')}<=set(ids)
        and {o[1]['aria-labelledby'] for o in t.all if 'aria-labelledby' in o[1]}<=set(ids))
    assert (all('alt' in o[1] for o in t('img')) and all(t.text(o) for o in t('label'))
        and len(t('caption'))==len(t('table')) and all(t.text(o) for o in t('caption')))
    assert (all(o[1].get('scope') in ('row','col') for o in t('th')) and t('output')[0][1]['aria-live']=='polite'
        and all(o[1].get('aria-label') for o in t('svg', role='img')))
    script, = t('script')
    digest = base64.b64encode(__import__('hashlib').sha256(''.join(script[2]).encode()).digest()).decode()
    policy = next(o[1]['content'] for o in t('meta') if o[1].get('http-equiv'))
    assert f"script-src 'sha256-{digest}'" in policy and policy.startswith("default-src 'none'"), (
        'no other script may run, and nothing be fetched')

def test_names_stay_names(made, photos):
    "Labels and files that want to be markup are text, with what cannot be seen made visible"
    t,text = tree(made),made.read_text(encoding='utf-8')
    assert len(t('script'))==len(t('style'))==1 and not t('img', src='x') and not any(k.startswith('on') for _,a,_ in t.all for k in a)
    assert '\u202e' not in text and '�gnp.exe' in text and 'שלום' in text
    assert {o[1]['data-label'] for o in t('figure', class_='shot')}==set(nasty[:3])
    assert {o[1]['value'] for o in t('option')} >= set(nasty[:3])
    hostile = report_text(nasty[0]+nasty[4])
    assert not Tree(hostile).wrong and len(Tree(hostile)('script'))==1 and '\u202e' not in hostile

def report_text(name):
    return page.page_html(name,
        page.H1(page.bdi(name)),
        page.page_table([(page.bdi(name),1)], [name], name),
        page.line_chart([page.Curve(name, [0,1], [1,2])], name),
        page.dot_chart([(name,[1,2])], name),
        page.copy_box(name))

def test_pictures_are_of_the_run(made, run, photos):
    "Against fastai's own predictions, the split on disk, and heat computed anew"
    t,learn = tree(made),load_learner(run/'model.pkl')
    split = pd.read_csv(run/'folds.csv', dtype=str, keep_default_na=False)
    shots = t('figure', class_='shot')
    assert Counter(o[1]['data-part'] for o in shots)=={'validation':12,'training':12}, (
        'all validation images, and all that the last step masked')
    valid = sorted(split.file[split.part=='valid'])
    with learn.no_bar(): probs = learn.get_preds(dl=learn.dls.test_dl([photos/o for o in valid], num_workers=0))[0]
    heat,_ = heat_of(LayerCAM(learn.model, target='margin'),
        whole_dl(learn.dls, [photos/o for o in valid], size=(64,64), with_labels=False, num_workers=0))
    label = dict(zip(split.file, split.label))
    at = [i for i,o in enumerate(t.all) if o[0]=='figure' and o[1].get('data-part')=='validation']
    for k,(i,f) in enumerate(zip(at, valid)):
        assert t.all[i][1]['data-label']==label[f]
        assert t.all[i][1]['data-right']==('right' if learn.dls.vocab[probs[k].argmax()]==label[f] else 'wrong')
        assert float(t.all[i][1]['data-prob'])==pytest.approx(probs[k].max().item(), abs=1e-3)
        assert float(t.all[i][1]['data-loss'])==pytest.approx(-np.log(probs[k][list(learn.dls.vocab).index(label[f])].item()), abs=1e-3)
        pics = [o[1] for o in t.all[i:i+20] if o[0]=='img'][:2]
        assert np.abs(np.asarray(opened(pics[0]['src']).convert('RGB')).astype(int)
            - np.asarray(Image.open(photos/f))).mean()<12, 'the picture itself'
        x,big = np.asarray(opened(pics[1]['src']).convert('RGBA'))[...,3]/255, resize_heat(heat[k][None], (28,28))[0].numpy()**.8
        assert np.abs(x-big).max()<.03, 'heat is the opacity of its layer'

def test_proxies_are_what_was_served(made, run, photos):
    "The masked share of each proxy picture is the one in the log; the rest is the original"
    t,log,store = tree(made),pd.read_csv(run/'proxy_log.csv'),HeatmapStore.load(run/'heat.npz')
    last,served = log[log.epoch==log.epoch.max()].set_index('file'),set(pd.read_csv(run/'served.csv').item)
    assert served<set(last['item']), 'with p=.5 some are served, and some are not'
    for i,o in enumerate(t.all):
        if o[0]!='figure' or o[1].get('data-part')!='training': continue
        pics = [p[1] for p in t.all[i:i+12] if p[0]=='img']
        name = t.text(next(x for x in t.all[i:] if x[1].get('class')=='name'))
        file = next(f for f in last.index if name==short_text('/'.join(Path(f).parts[-2:]), 40))
        item = last.item[file]
        if item not in served:
            assert pics[-1]['data-n']=='heatmap at the step' and 'Selected after epoch 0; its loss was' in t.text(o)
            continue
        black = np.asarray(opened(pics[-1]['src']).convert('RGB')).max(-1)<30
        mask = Masker('area', 'zero', area=.1).mask_over(store[item][None], black.shape)[0].bool().numpy()
        assert pics[-1]['data-n']=='proxy' and (black&mask).sum()/(black|mask).sum()>.8, 'black where the kept heat is hottest'
        assert 'Served as a proxy, with 10% of the image masked, after epoch 0; its loss was' in t.text(o)
    files = {f'{f.parent.name}/{f.name}' for f in map(Path, last.index)}
    assert {short_text('/'.join(Path(f).parts[-2:]), 40) for f in files}=={
        t.text(n) for i,o in enumerate(t.all)
        if o[0]=='figure' and o[1].get('data-part')=='training'
        for n in [next(x for x in t.all[i:] if x[1].get('class')=='name')]}

def test_numbers_are_those_on_disk(made, run):
    t,hist,steps = tree(made),pd.read_csv(run/'history.csv'),pd.read_csv(run/'proxy_steps.csv')
    head,row = cells(t, 'Last epoch')
    assert [float(row[head.index(c)]) for c in ('train_loss','valid_loss','accuracy')]==pytest.approx(hist.iloc[-1,1:].tolist(), abs=6e-4)
    rows = cells(t, 'Proxy steps of')
    assert [(r[0],int(r[1]),int(r[2])) for r in rows[1:]]==[(f'after epoch {o.epoch}',o.chosen,o.made) for o in steps.itertuples()]
    loss = cells(t, 'Loss')
    assert [float(r[2]) for r in loss[1:]]==pytest.approx(hist.valid_loss.tolist(), rel=2e-3)
    shown = next(o for o in t('pre') if '[data]' in ''.join(o[2]))
    assert tomli.loads(''.join(shown[2]))==tomli.loads((run/'config.toml').read_text(encoding='utf-8')), 'to be copied'

def test_command_makes_the_same_configuration(run):
    from proxy_attention.cli import asked, proxy_train
    import shlex
    for line in run_again(RunFolder(run)):
        args = shlex.split(line)
        assert args[0]=='proxy-train'
        said = asked(proxy_train, args[1:])
        cfg = from_toml(said.pop('config')) if 'config' in said else Config()
        assert changed(cfg, **said)==from_toml(run/'config.toml')

def written(d, seed, acc, **kw):
    "A run folder as a training leaves it, with nothing but numbers"
    d.mkdir(parents=True)
    (d/'config.toml').write_text(to_toml(changed(Config(), seed=seed, **(dict(path='photos', epochs=len(acc))|kw))), encoding='utf-8')
    pd.DataFrame(dict(epoch=range(len(acc)), train_loss=acc, valid_loss=acc, accuracy=acc)).to_csv(d/'history.csv', index=False)
    return d

def test_groups_their_spread_and_the_verdict(tmp_path):
    "Against NumPy, and SciPy's paired t test"
    rng = np.random.default_rng(0)
    base = rng.uniform(.5, .6, 5)
    good,even = base+.2+rng.normal(0, .02, 5), base+rng.normal(0, .05, 5)
    for name,v,kw in (('a',base,dict(recipe='none')), ('b',good,dict(recipe='shortcut')), ('c',even,dict(recipe='late'))):
        for s,o in enumerate(v): written(tmp_path/'runs'/f'{name}{s}', s, [.1,.3,o], **kw)
    out = report_runs(tmp_path/'runs', quiet=True)
    assert out==tmp_path/'runs'/'report.html'
    t,said = tree(out),words(out)
    rows = {r[0]:r for r in cells(t, 'Last epoch')}
    for name,v in (('no proxies',base),('shortcut',good),('late',even)):
        assert rows[name][1:4]==['5','0, 1, 2, 3, 4','3'] and rows[name][6]==f'{v.mean():.3f} ± {v.std(ddof=1):.3f}'
    for name,v,word in (('shortcut',good,'Helps'),('late',even,'No effect shown')):
        ci = ttest_rel(v, base).confidence_interval(.95)
        assert (f'{word}: {(v-base).mean():+.3f} compared with no proxies, 5 common seeds, '
            f'95 % interval {ci.low:+.3f} to {ci.high:+.3f}') in said
        assert rows[name][7]==f'{(v-base).mean():+.3f} [{ci.low:+.3f}, {ci.high:+.3f}]'
    written(tmp_path/'runs'/'d', 9, [.1,.3,.9,.9], recipe='none', epochs=4)
    assert 'different numbers of epochs' in words(report_runs(tmp_path/'runs', quiet=True))

def headings(t): return [t.text(o) for o in t.all if re.fullmatch('h[1-6]', o[0])]

def test_conclusions_come_first_and_no_heading_twice(run, tmp_path):
    "Before any table, curve and picture; what is missing and what went wrong stand there, too"
    for name,recipe,v in (('a','none',.5),('b','shortcut',.75),('c','late',.25)):
        for s in range(2): written(tmp_path/'runs'/f'{name}{s}', s, [.1,v], recipe=recipe, area=None if recipe=='none' else .2)
    comparison(tmp_path/'runs'/'compare', ['no proxy','shortcut'], 2)
    for f in (tmp_path/'runs'/'b0').glob('*.csv'): f.unlink() # not at its end
    steps = dict(fit=1, epoch=0, known=9, chosen=9, made=6, degenerate=3, served=6, mean_loss=1., area=.2, seconds=1., rule='x')
    for o in ('b1','c0'): pd.DataFrame([steps]).to_csv(tmp_path/'runs'/o/'proxy_steps.csv', index=False)
    out = report_runs([tmp_path/'runs', tmp_path/'runs'/'compare', run], tmp_path/'report.html', quiet=True)
    t,text = tree(out),out.read_text(encoding='utf-8')
    h = headings(t)
    assert len(set(h))==len(h), h
    order = ['In short','What is missing','Results','Curves','What was run','Proxy steps','Pictures','Run it again']
    assert [o for o in h if o in order]==order
    first = [o[0] for o in t.all[next(i for i,o in enumerate(t.all) if o[0]=='section'):]]
    assert 'ul' in first[:8] and not {'table','svg','figure'} & set(first[:first.index('section', 1)])
    said = words(out)
    assert 'The best run is shortcut on photos' in said and 'accuracy 0.750 after 2 epochs' in said
    ends = [said.index(o) for o in ('shortcut: accuracy 0.750','no proxies: accuracy 0.500 ± 0.000','late: accuracy 0.250 ± 0.000')]
    assert ends==sorted(ends), 'the best first'
    both = said[said.index('Warnings'):]
    assert both.count('After epoch 0: 3 of 9 heatmaps are uninformative (flat or not finite)')==1, 'a sentence of two runs is said once'
    assert re.search(r'shortcut on photos[^;]*; late on photos[^:]*: After epoch 0', both)
    assert 'as usual' not in text.lower() and 'train_' not in ' '.join(h), 'no time stamp is a heading'
    rows = {r[0]:r for r in cells(t, 'Settings that differ')}
    areas = [r[rows['run'].index('area')] for k,r in rows.items() if k!='run']
    assert set(areas)=={'not set','0.2','0.1'}, 'the recipe says what was not asked for'

def test_titles_are_short_and_no_two_alike(tmp_path):
    at = '2026-03-01_10-20-'
    made = [
        written(tmp_path/f'train_{at}30', 0, [.1], recipe='none'), written(tmp_path/f'train_{at}31', 1, [.1], recipe='none'),
        written(tmp_path/f'train_{at}32', 0, [.1], recipe='shortcut', path='/data/birds.v2'),
        written(tmp_path/f'train_{at}33', 0, [.1], recipe='shortcut', path='/data/birds.v2'),
        written(tmp_path/f'train_2026-03-01_11-20-33', 0, [.1], recipe='shortcut', path='/data/birds.v2'),
        written(tmp_path/f'train_{at}34', 0, [.1], path='pets:/data/pets'), written(tmp_path/'mine', 0, [.1], path='x/table.csv')]
    comparison(tmp_path/f'compare_{at}35', ['no proxy','shortcut'], 2)
    titles = run_titles(open_runs(made)+open_runs(tmp_path/f'compare_{at}35'))
    day,names = '2026-03-01',[*titles.values()]
    assert names[:2]==[f'no proxies on photos, {day}, seed 0', f'no proxies on photos, {day}, seed 1']
    assert len(set(names))==8 and all(o.startswith(f'shortcut on birds.v2, {day}, ') for o in names[2:5])
    assert [o.split(', ')[2] for o in names[2:5]]==['10:20','10:20','11:20'] and f'train_{at}32' in names[2]
    assert names[5]==f'probed on pets, {day}' and names[6].startswith('probed on table, ')
    assert names[7]==f'comparison of 2 arms on photos, {day}'
    twice = [RunFolder(written(tmp_path/o/'run', 0, [.1])) for o in ('a','b')]
    assert len(set(run_titles(twice).values()))==2, 'folders of one name in two places'

def test_many_warnings_unfold(tmp_path):
    d = written(tmp_path/'a', 0, [.1])
    pd.DataFrame([dict(file=f'{i}.png', problem=f'odd {i}') for i in range(10)]).to_csv(d/'problems.csv', index=False)
    t = tree(report_runs(d, quiet=True))
    part = next(o for o in t('section') if 'Warnings' in t.text(o))
    assert [t.text(part).count(f'1 image is odd {i}: {i}.png.') for i in range(10)]==[1]*10
    assert [t.text(o) for o in t('summary')][0]=='2 more' and 'The best run' not in words(d/'report.html')

def test_a_run_without_a_step_says_why(tmp_path):
    d = written(tmp_path/'a', 0, [.1])
    said = 'The predictions depend on nothing that would be swapped, so nothing is masked.'
    (d/'warnings.txt').write_text(f'ProxyWarning: {said}\nUserWarning: torch is talkative\nProxyWarning: {said}\n')
    assert words(report_runs(d, quiet=True)).count(said)==1 and 'talkative' not in words(d/'report.html')
    step = dict(fit=0, epoch=0, chosen=4, made=4, degenerate=0, mean_loss=1., area=.1, seconds=1.)
    pd.DataFrame([step]).to_csv(d/'proxy_steps.csv', index=False)
    assert said not in words(report_runs(d, quiet=True)), 'what its steps were is told by their table'

@pytest.mark.parametrize('suspect,named', [('runs/first/model.safetensors','runs/first'), ('other.pkl','other.pkl'),
                                          (None,'rehearsed by the run itself')])
def test_a_step_before_the_first_epoch_and_its_suspect(tmp_path, suspect, named):
    d = written(tmp_path/'a', 0, [.1,.2], recipe='rehearsed', suspect=suspect)
    step = dict(fit=0, epoch=-1, chosen=4, made=0, degenerate=3, mean_loss=1., area=.1, seconds=1.)
    pd.DataFrame([step]).to_csv(d/'proxy_steps.csv', index=False)
    t,said = tree(report_runs(d, quiet=True)),words(d/'report.html')
    assert cells(t, 'Proxy steps of')[1][0]=='before the first epoch, where the suspect looked' and not re.search('epoch [-−]', said)
    assert 'Before the first epoch, where the suspect looked: 3 of 4 heatmaps are uninformative' in said
    assert 'Before the first epoch, where the suspect looked: no proxy image was made.' in said
    assert dict(r for r in cells(t, 'Settings and images')[1:])['suspect']==named and f'where a suspect looks: {named}.' in said
    assert 'proxy step' not in [t.text(o) for o in t('li')], 'no line in the curves, so no key'

def test_the_last_step_is_that_of_the_last_fit(tmp_path):
    "In a second fit, epochs are counted from 0 again"
    d = written(tmp_path/'a', 0, [.1])
    row = dict(file='x.png', pred='a', method='GradCAM of a', item=1, loss=1., area=.1, degenerate=False)
    steps = [row|dict(fit=1, epoch=2, targ='a', file='early.png')]*3 + [row|dict(fit=2, epoch=0, targ='b', file='late.png')]
    pd.DataFrame(steps).to_csv(d/'proxy_log.csv', index=False)
    page = report_runs(d, quiet=True)
    assert [o[0] for o in cells(tree(page), 'Items of the last step')[1:]]==['late.png']
    assert '1 of the 1 items of the last proxy step were misclassified' in words(page)

def test_classes_called_None_or_NA_are_classes(tmp_path):
    "pandas would read these names as missing values, and the rows of the log would be gone"
    d = written(tmp_path/'a', 0, [.1,.2], recipe='shortcut')
    row = dict(file='None/1.png', pred='NA', targ='None', method='m', fit=0, epoch=0, item=1, loss=1., area=.1, degenerate=False)
    pd.DataFrame([row, row|dict(item=2, pred='')]).to_csv(d/'proxy_log.csv', index=False)
    log = RunFolder(d).log
    assert log[['pred','targ','item']].values.tolist()==[['NA','None',1]], 'the second row is not complete'

def test_a_run_without_a_suspect_names_none(tmp_path):
    d = written(tmp_path/'a', 0, [.1], recipe='shortcut')
    t = tree(report_runs(d, quiet=True))
    assert dict(cells(t, 'Settings and images')[1:])['suspect']=='none' and 'suspect looks' not in words(d/'report.html')

def shot(i, part, loss=0., n=1): return Shot(Path(f'{i}.png'), 'x', part, {k:torch.rand(2,2) for k in range(n)}, loss=loss)

@pytest.mark.parametrize('masked,seen,first', [(0,40,(0,24)), (40,0,(24,0)), (40,40,(12,12)), (5,40,(5,19)), (40,5,(19,5)), (9,9,(9,9))])
def test_which_pictures_come_first(masked, seen, first):
    shots = [shot(i, 'training') for i in range(masked)]+[shot(i, 'validation', loss=i) for i in range(seen)]
    got = foremost(shots)
    assert Counter(o.part for o in got)==Counter({k:v for k,v in zip(('training','validation'), first) if v})
    assert len({id(o) for o in got})==len(got)
    if seen==40: assert 39. in [o.loss for o in got], 'the largest loss is among them'

def test_more_pictures_unfold(run, tmp_path, monkeypatch):
    monkeypatch.setattr(sections, 'foremost', lambda shots: foremost(shots, 10))
    t = tree(report_runs(run, tmp_path/'x.html', quiet=True))
    rest, = t('details', id='rest')
    assert len(t('div', id='shots'))==len(t('div', id='more'))==1 and 'open' not in rest[1]
    assert t.text(rest).startswith('14 more pictures')
    at = [i for i,o in enumerate(t.all) if o[0]=='figure' and o[1].get('class')=='shot']
    fold = next(i for i,o in enumerate(t.all) if o[1].get('id')=='rest')
    assert sum(i<fold for i in at)==10 and sum(i>fold for i in at)==14
    assert t.text(t('output')[0])=='24 pictures'

def test_what_a_run_served_is_shown_as_it_was_served(tmp_path):
    "The same mask, donor and noise, put together at the size that the loader had, also of images that are larger than the page shows"
    (tmp_path/'photos').mkdir()
    rng = np.random.default_rng(0)
    for label in 'ab':
        (tmp_path/'photos'/label).mkdir()
        for i in range(6): Image.fromarray(rng.integers(0, 255, (40,700,3), dtype=np.uint8)).save(tmp_path/'photos'/label/f'{i}.png')
    class Keep(Callback):
        "Holds the learner"
        def after_fit(self): self.kept = self.learn
    for fill in ('shuffle','swap'):
        keep = Keep()
        d = train_folder(tmp_path/'photos', tmp_path/fill, recipe='shortcut', steps='1,p,1', fill=fill, p=1., lr=1e-3, cbs=keep,
                         **(tiny|dict(bs=4)))
        pa = keep.kept.proxy_attention
        shots = [o for o in Report(d, n=8).looked.shots if o.part=='training' and o.proxy]
        assert len(shots)>=4
        of = {Path(f).name+Path(f).parent.name:i for f,i in zip(pa.log.file, pa.log['item'])}
        for o in shots:
            want = pa.proxy_images([of[o.file.name+o.file.parent.name]])[0]
            want.thumbnail((512,512))
            assert np.array_equal(np.asarray(o.proxy()), np.asarray(want)), fill

def test_a_difference_of_one_image_is_no_effect(tmp_path):
    "In every seed, the same image of 20"
    for name,recipe,v in (('a','none',.5),('b','shortcut',.55)):
        for s in range(5): written(tmp_path/f'{name}{s}', s, [.1,v], recipe=recipe)
    said = words(report_runs(tmp_path, quiet=True))
    assert 'No spread: +0.050 compared with no proxies, 5 common seeds, whose differences are all equal.' in said
    for d in tmp_path.glob('[ab]?'):
        pd.DataFrame(dict(file=[f'{i}.png' for i in range(30)], label='x', part=['train']*10+['valid']*20, fold=0)).to_csv(
            d/'folds.csv', index=False)
    said = words(report_runs(tmp_path, quiet=True))
    assert 'No effect shown: +0.050 compared with no proxies, 5 common seeds, 95 % interval -0.012 to +0.112.' in said

def test_less_loss_is_better(tmp_path):
    for name,recipe,v in (('a','none',[.9,.8,.85,.88,.87]),('b','shortcut',[.5,.42,.44,.5,.45])):
        for s,o in enumerate(v):
            d = written(tmp_path/f'{name}{s}', s, [1.,o], recipe=recipe)
            pd.read_csv(d/'history.csv').drop(columns='accuracy').to_csv(d/'history.csv', index=False)
    assert 'Helps: -0.398 compared with no proxies' in words(report_runs(tmp_path, quiet=True))

def comparison(d, arms, seeds):
    rng = np.random.default_rng(0)
    (d/'records').mkdir(parents=True)
    (d/'config.toml').write_text(to_toml(changed(Config(), path='photos', epochs=3)), encoding='utf-8')
    (d/'asked.json').write_text(json.dumps(dict(arms=','.join(arms), seeds=seeds)))
    for a,arm in enumerate(arms):
        for s in range(seeds):
            acc = .6+.1*a+rng.normal(0, .01)
            rec = dict(arm=arm, seed=s, start='x', steps=9, seconds=1., proxies=3*a, proxy_seconds=.1, measures={},
                notes=['A note <b>.']*a,
                tests=dict(valid=dict(n=100, accuracy=acc, loss=1., worst=acc-.1, groups=dict(x=acc))))
            (d/'records'/f'{arm}_{s}.json').write_text(json.dumps(rec))
    return d

def test_comparison_brings_its_own_verdict(tmp_path):
    d = comparison(tmp_path/'compare', ['no proxy','shortcut'], 5)
    said = words(report_runs(d, quiet=True))
    for line in Comparison.kept(d/'records', ['no proxy','shortcut']).verdict().splitlines(): assert ' '.join(line.split()) in said
    assert 'shortcut: helps on valid' in said and 'A comparison does not store models' in said
    for f in (d/'records').glob('shortcut_[1-4].json'): f.unlink()
    said = words(report_runs(d, quiet=True))
    assert '6 of 10 runs of the comparison compare are complete: resume it with proxy-compare --resume' in said
    lock = hold_folder(d)
    assert '6 of 10 runs of the comparison compare are complete: it is running.' in words(report_runs(d, quiet=True)) and lock.is_locked
    let_go(d)
    for f in (d/'records').glob('shortcut_*.json'): f.unlink()
    assert '5 of 10 runs' in words(report_runs(d, quiet=True))
    shutil.rmtree(d/'records')
    assert 'No run of the comparison compare is complete yet' in words(report_runs(d, quiet=True))

def test_a_comparison_of_several_labels_shows_what_it_compares(tmp_path):
    "The mean average precision, and not the accuracy over labels"
    d = comparison(tmp_path/'compare', ['no proxy','shortcut'], 2)
    for f in (d/'records').glob('*.json'):
        rec = json.loads(f.read_text())
        rec['tests']['valid']['mean_ap'] = .25
        f.write_text(json.dumps(rec))
    t = tree(report_runs(d, quiet=True))
    assert [o[1] for o in cells(t, 'Mean average precision in %')[1:]]==['25.0 ± 0.0']*2
    assert [t.text(o) for o in t('figcaption')]==['valid: mean average precision in %, one dot per seed']
    assert '25.0' in {t.text(o) for o in t('title')}

def test_an_arm_that_has_no_result_on_a_test_set_yet_is_drawn_without_one(tmp_path):
    d = comparison(tmp_path/'compare', ['no proxy','shortcut'], 2)
    for f in (d/'records').glob('no proxy_*.json'):
        rec = json.loads(f.read_text())
        rec['tests']['more'] = rec['tests']['valid']
        f.write_text(json.dumps(rec))
    with warnings.catch_warnings():
        warnings.filterwarnings('error', 'Mean of empty slice')
        t = tree(report_runs(d, quiet=True))
    assert len(t('svg', class_='chart'))==2
    assert not [o for o in t.all if o[0] in ('line','circle','polyline') and 'nan' in o[1].values()]

def test_the_cost_of_each_arm_is_shown(tmp_path):
    "Records of earlier releases do not say what was looked at"
    d = comparison(tmp_path/'compare', ['no proxy','shortcut'], 2)
    heads = ['arm','optimizer steps','images trained on','images only looked at','seconds','proxy images','seconds of proxy steps']
    assert cells(tree(report_runs(d, quiet=True)), 'Work of each arm')==[
        heads, ['no proxy','9','–','–','1','0','0.1'], ['shortcut','9','–','–','1','3','0.1']]
    for f in (d/'records').glob('*.json'):
        rec = json.loads(f.read_text())
        f.write_text(json.dumps(rec|dict(trained=90, looked=30*(rec['arm']=='shortcut'))))
    page = report_runs(d, quiet=True)
    assert cells(tree(page), 'Work of each arm')[1:]==[['no proxy','9','90','0','1','0','0.1'], ['shortcut','9','90','30','1','3','0.1']]
    assert [o[-2:] for o in cells(tree(page), 'Accuracy in %')]==[
        ['cost: in steps','cost: in seconds'], ['9','1 s'], ['1.11 ×','1.00 ×']]
    assert 'shortcut takes 1.11 × the steps.' in words(page)

def test_a_comparison_keeps_which_images_were_right(tmp_path):
    "Also where an arm has no run yet, or has settings with a comma in them"
    arms = ['no proxy','shortcut(area=0.2,fill=zero)','late']
    d = comparison(tmp_path/'compare', arms, 5)
    for i,f in enumerate(sorted((d/'records').glob('*_*.json'))):
        rec = json.loads(f.read_text())
        bits = np.arange(100)<60+i
        t = rec['tests']['valid']
        t |= dict(accuracy=bits.mean(), right=np.packbits(bits).tobytes().hex())
        f.write_text(json.dumps(rec))
    for f in (d/'records').glob('late_*.json'): f.unlink()
    shutil.copy(d/'records'/f'{arms[0]}_0.json', d/'records'/'late_9.json')
    rec = json.loads((d/'records'/'late_9.json').read_text())
    (d/'records'/'late_9.json').write_text(json.dumps(rec|dict(arm='late', seed=9)))
    run = RunFolder(d)
    got,want = run.comparison(),Comparison.kept(d/'records', arms)
    assert got.arms==arms[:2] and {k for k in want.right if k[0]!='late'}==set(got.right) and len(got.right)==10
    row = lambda c: c.stats().set_index(['arm','test']).loc[(arms[1],'valid')]
    assert row(got).lo_images==row(want).lo_images and np.isfinite(row(got).lo_images)
    assert 'comparison of 3 arms' in run_titles([run])[d]

def test_the_command_of_a_comparison_makes_the_same_one(tmp_path):
    "With the file, and with everything spelt out; a comparison of an earlier release kept its test sets beside the arms"
    from proxy_attention.cli import asked, proxy_compare
    import shlex
    d = comparison(tmp_path/'a run', ['no proxy','shortcut(area=0.2,fill=zero)'], 3)
    tests = {o:str(tmp_path/f'the {o}') for o in ('plain','flipped')}
    cfg = changed(Config(), path=str(tmp_path/'my photos'), epochs=3, lr=.1, recipe='none', tests=tests)
    (d/'config.toml').write_text(to_toml(cfg), encoding='utf-8')
    for old in (False,True):
        if old:
            (d/'config.toml').write_text(to_toml(changed(cfg, tests='')), encoding='utf-8')
            (d/'asked.json').write_text(json.dumps(json.loads((d/'asked.json').read_text())|dict(tests=','.join(
                f'{k}={v}' for k,v in tests.items()))))
        lines = run_again(RunFolder(d))
        assert len(lines)==2
        for line in lines:
            name,*args = shlex.split(line)
            said = asked(proxy_compare, args)
            assert name=='proxy-compare' and (said.pop('arms'),said.pop('seeds'))==('no proxy,shortcut(area=0.2,fill=zero)',3)
            begun = from_toml(said.pop('config')) if 'config' in said else Config()
            assert changed(begun, **said|dict(recipe='none'))==cfg

def measured(d, seed, acc, images=None, **accs):
    "A run that was measured on test sets"
    written(d, seed, [.1,acc], **images or {})
    rows = [dict(test=t, n=200, accuracy=v, loss=1-v, worst_group='NA', worst=v/2) for t,v in accs.items()]
    pd.DataFrame(rows).to_csv(d/'tests.csv', index=False)
    return d

def test_runs_are_judged_by_their_test_sets(tmp_path):
    "Validation says the opposite; ranked by the lowest test set; differences against SciPy, raised after Holm"
    rng = np.random.default_rng(0)
    base = rng.uniform(.3, .4, 5)
    made = dict(none=(.99,base+.3,base), shortcut=(.9,base+.25,base+.3+rng.normal(0, .02, 5)),
        late=(.95,base+.3+rng.normal(0, .02, 5),base+.03+rng.normal(0, .025, 5)))
    for name,(v,plain,flipped) in made.items():
        for s in range(5): measured(tmp_path/'runs'/f'{name}{s}', s, v, dict(recipe=name), plain=plain[s], flipped=flipped[s])
    t = tree(report_runs(tmp_path/'runs', quiet=True))
    said = ' '.join(t.text(o) for o in t('main'))
    assert 'ranked and compared by the lowest of their accuracies on the test sets plain and flipped' in said
    assert 'the accuracy on them does not show whether the shortcut is cured' in said and 'The best run is shortcut on photos' in said
    spread = lambda v: f'{v.mean():.3f} ± {v.std(ddof=1):.3f}'
    means = [f'{k}: accuracy {spread(made[o][1])} on plain and {spread(made[o][2])} on flipped (5 runs).'
             for k,o in (('shortcut','shortcut'),('late','late'),('no proxies','none'))]
    at = [said.index(o) for o in means]
    assert at==sorted(at), 'the best first, by the worst test set'
    p = {o:ttest_rel(made[o][2], base).pvalue for o in ('shortcut','late')}
    assert p['shortcut']<.001 and .01<p['late']<.05, 'the correction matters'
    head,*rows = cells(t, 'Last epoch')
    row = {r[0]:dict(zip(head, r)) for r in rows}
    for o in ('shortcut','late'):
        d = made[o][2]-base
        ci = ttest_rel(made[o][2], base).confidence_interval(.95)
        assert (f'on flipped: {d.mean():+.3f} compared with no proxies, 5 common seeds, '
                f'95 % interval {ci.low:+.3f} to {ci.high:+.3f}') in said
        assert row[o]['accuracy on flipped minus no proxies']==f'{d.mean():+.3f} [{ci.low:+.3f}, {ci.high:+.3f}]'
        assert row[o]['accuracy on plain']==spread(made[o][1])
    assert row['late']['worst group on flipped'].startswith(f'{made["late"][2].mean()/2:.3f}')
    assert 'corrected for 2 groups (Holm)' in said
    assert {r[0]:r[1] for r in cells(t, 'Settings that all runs share')}['test sets']=='plain 200, flipped 200'

def test_why_a_run_is_not_complete(tmp_path):
    "Running, stopped, or ended with an error, also after the last epoch; a log without settings does not say"
    d = written(tmp_path/'a', 0, [.1,.2], recipe='none')
    report = lambda: words(report_runs(d, quiet=True))
    assert 'What is missing' not in report()
    (d/'failed.txt').write_text('ValueError: The `tests` cannot be read.\n')
    said = report()
    assert "has trained 2 of 2 epochs: it ended with an error (ValueError: The 'tests' cannot be read); resume it with proxy-train" in said
    (d/'history.csv').unlink()
    assert 'has trained 0 of 2 epochs: it ended with an error (ValueError' in report()
    (d/'failed.txt').unlink()
    assert 'has trained 0 of 2 epochs: it was stopped; resume it with proxy-train' in report()
    lock = hold_folder(d)
    assert 'has trained 0 of 2 epochs: it is running.' in report() and lock.is_locked
    let_go(d)
    (d/'failed.txt').write_bytes(b'\xff')
    assert 'epochs: it ended with an error; resume' in report()
    c = comparison(tmp_path/'compare', ['no proxy','shortcut'], 2)
    (c/'identity.json').write_text(json.dumps(dict(arms=['no proxy','shortcut'], seeds=2, tests={})))
    (c/'records'/'shortcut_1.json').unlink()
    (c/'failed.txt').write_text('OSError: The disk is full\n')
    said = words(report_runs(c, quiet=True))
    assert 'compare are complete: it ended with an error (OSError: The disk is full); resume it with proxy-compare' in said
    (d/'config.toml').unlink()
    assert RunFolder(d).why_incomplete(run_state(d))=='it is running, or was stopped'

def test_a_run_folder_reads_its_run(run, tmp_path):
    alone,found = RunFolder(run),open_runs(run)[0]
    assert len(alone.epochs) and alone.epochs.equals(found.epochs) and alone.run.when==found.run.when and not alone.missing
    d = written(tmp_path/'a', 0, [.1,.2])
    (d/'history.csv').write_bytes(b'\xff')
    assert 'history.csv of a cannot be read completely' in ' '.join(RunFolder(d).missing)
    assert not len(RunFolder(tmp_path).epochs), 'that of the folder itself, and not of one below'

def of_labels(d, recipe, acc, ap, **tests):
    "A run with several labels per image: the accuracy over labels, and the mean of their average precisions"
    written(d, 0, [.1,acc], recipe=recipe)
    df = pd.read_csv(d/'history.csv').rename(columns=dict(accuracy='accuracy_multi')).assign(mean_ap=[.1,ap])
    df.to_csv(d/'history.csv', index=False)
    rows = [dict(test=t, n=200, accuracy=acc, mean_ap=v, loss=.5, worst_group='cup', worst=v-.1) for t,v in tests.items()]
    if rows: pd.DataFrame(rows).to_csv(d/'tests.csv', index=False)
    return d

def test_several_labels_are_judged_by_their_mean_average_precision(tmp_path):
    "As in a comparison and in the training; most labels are absent, so the accuracy over labels says little"
    a,b = of_labels(tmp_path/'a', 'none', .95, .3),of_labels(tmp_path/'b', 'late', .94, .8)
    t = tree(report_runs([a,b], tmp_path/'x.html', quiet=True))
    said = ' '.join(t.text(o) for o in t('main'))
    assert re.search('The best run is late on photos[^:]*: mean average precision 0.800 after 2 epochs', said)
    assert 'late: mean average precision 0.800 (1 run)' in said and '+0.500 compared with no proxies' in said
    assert 'mean average precision minus no proxies' in cells(t, 'Last epoch')[0]
    assert 'mean average precision 80.0% on the validation images after 2 epochs.' in words(report_runs(b, quiet=True))

def test_test_sets_of_several_labels_too(tmp_path):
    a = of_labels(tmp_path/'a', 'none', .95, .3, plain=.3, flipped=.31)
    b = of_labels(tmp_path/'b', 'late', .94, .8, plain=.8, flipped=.9)
    t = tree(report_runs([a,b], tmp_path/'x.html', quiet=True))
    said = ' '.join(t.text(o) for o in t('main'))
    assert re.search('The best run is late on photos[^:]*: mean average precision 0.800 on plain and 0.900 on flipped', said)
    assert 'the lowest of their mean average precisions on the test sets plain and flipped' in said
    assert 'Over-corrected: late is 10.0 points' in said
    head,*rows = cells(t, 'Last epoch')
    row = {r[0]:dict(zip(head, r)) for r in rows}['late']
    assert (row['accuracy on plain'],row['mean average precision on plain'],row['worst group on plain'])==('0.940','0.800','0.700')
    assert row['mean average precision on plain minus no proxies'].startswith('+0.500')
    one = words(report_runs(b, quiet=True))
    assert 'Test set plain: mean average precision 80.0% on 200 images, lowest in cup (70.0%).' in one
    c = measured(tmp_path/'c', 0, .9, dict(recipe='shortcut'), plain=.6, flipped=.6)
    mixed = tree(report_runs([a,b,c], tmp_path/'x.html', quiet=True)) # of one label: by what all of them have
    head,*rows = cells(mixed, 'Last epoch')
    row = {r[0]:dict(zip(head, r)) for r in rows}
    assert row['shortcut']['mean average precision on plain']=='–' and 'accuracy on plain minus no proxies' in head
    assert not any('precision' in o for o in cells(tree(report_runs(c, quiet=True)), 'Last epoch')[0])

def test_groups_are_read_together(tmp_path):
    "One of five that would be told of alone; without test sets, of validation"
    rng = np.random.default_rng(1)
    base,good = rng.uniform(.5, .6, 5),np.array([.03,.06,.01,.05,.02])
    kw = [dict(recipe='none'), *(dict(recipe=o) for o in ('shortcut','late','thesis','masktune'))]
    for i,o in enumerate(kw):
        for s in range(5): written(tmp_path/f'{i}_{s}', s, [.1, base[s]+(good[s] if i==1 else rng.normal(0, .05) if i else 0)], **o)
    p = ttest_rel(base+good, base).pvalue
    assert .0125<p<.05
    said = words(report_runs(tmp_path, quiet=True))
    assert f'No effect shown: {good.mean():+.3f} compared with no proxies, 5 common seeds' in said
    assert re.search(rf'corrected p = {4*p:.2g}\.', said) and 'corrected for 4 groups (Holm)' in said
    assert 'A test set without the shortcut shows it (--tests plain=FOLDER)' in said

def test_over_correction_of_a_training_is_told(tmp_path):
    d = measured(tmp_path/'a', 0, .9, dict(recipe='shortcut'), plain=.65, flipped=.72)
    said = words(report_runs(d, quiet=True))
    assert 'Over-corrected: shortcut on photos' in said and 'is 7.0 points better where the cue is misleading (flipped)' in said
    assert 'Test set flipped: accuracy 72.0% on 200 images, lowest in NA (36.0%).' in said
    assert 'the accuracy on them does not show whether the shortcut is cured' in said
    other = measured(tmp_path/'b', 0, .9, dict(recipe='none'), plain=.65, flipped=.66)
    assert 'Over-corrected' not in words(report_runs(other, quiet=True))
    both = words(report_runs([d, other], tmp_path/'both.html', quiet=True))
    assert 'Over-corrected: shortcut is 7.0 points' in both and 'Over-corrected: no proxies' not in both

@pytest.mark.parametrize('change', ['digest','number','gone'])
def test_test_sets_of_one_name_are_not_taken_for_one_another(tmp_path, change):
    a,b = (measured(tmp_path/o, 0, v, dict(recipe=o), plain=w) for o,v,w in (('none',.5,.9),('shortcut',.7,.1)))
    if change=='digest':
        for o in (a,b): (o/'identity.json').write_text(json.dumps(dict(tests=dict(plain=dict(number=200, digest=o.name)))))
    if change=='number': pd.read_csv(b/'tests.csv').assign(n=199).to_csv(b/'tests.csv', index=False)
    if change=='gone': (b/'tests.csv').unlink()
    t = tree(report_runs([a,b], tmp_path/'x.html', quiet=True))
    said = ' '.join(t.text(o) for o in t('main'))
    assert 'The test set plain is missing or different in some runs, and is not used to compare them.' in said
    assert 'The best run is shortcut' in said and 'accuracy minus no proxies' in cells(t, 'Last epoch')[0]
    assert 'accuracy on plain' in cells(t, 'Last epoch')[0], 'shown it is'

@pytest.mark.parametrize('file,content', [
    ('tests.csv',''), ('tests.csv','test,n\nplain,3\n'), ('tests.csv','test,n,accuracy,loss,worst_group,worst\n'+2*'a,3,.5,.5,x,.5\n'),
    ('identity.json','[1'), ('identity.json','[]'), ('identity.json','{"tests":3}'), ('identity.json','{"tests":{"plain":"x"}}')])
def test_broken_results_of_test_sets_are_told(tmp_path, file, content):
    d = measured(tmp_path/'a', 0, .9, plain=.65)
    (d/file).write_text(content)
    said = words(report_runs(d, quiet=True))
    assert f'{file} of a cannot be read' in said and ('Test set plain: accuracy 65.0%' in said)==(file!='tests.csv')

def test_run_cut_off(copy_of, made):
    "Without model and history: curves from the log, steps and pictures from what the steps kept"
    d = copy_of()
    for o in ('model.pkl','model.safetensors','history.csv','proxy_steps.csv','proxies.png'): (d/o).unlink()
    log = pd.read_csv(d/'proxy_log.csv')
    pd.concat([log[:5].assign(fit=0, item=range(900, 905), loss=9.), log]).to_csv(d/'proxy_log.csv', index=False) # of an earlier fit
    t,full = tree(report_runs(d, quiet=True)),tree(made)
    said = words(d/'report.html')
    assert ': it was stopped; resume it with proxy-train --resume' in said and 'has no model yet' in said
    early,*rows = cells(t, 'Proxy steps of')[1:]
    assert early[:5]==['after epoch 0','5','5','0','9.000'] and [r[:5] for r in rows]==[r[:5] for r in cells(full, 'Proxy steps of')[1:]]
    assert [r[-1] for r in cells(t, 'accuracy')]==[r[-1] for r in cells(full, 'accuracy')]
    assert {o[1]['data-part'] for o in t('figure', class_='shot')}=={'training'}
    for o in ('heat.npz','folds.csv','proxy_log.csv'): (d/o).write_bytes((d/o).read_bytes()[:40])
    said = words(report_runs(d, quiet=True))
    assert 'heat.npz of copy cannot be read' in said and 'There are no pictures to show' in said

def test_images_moved_and_a_broken_one(copy_of, photos, tmp_path, capsys):
    "Moved: a sentence, and with --images they are found; one that is broken, and one that is gone, are named and the others shown"
    d,there = copy_of(),Path(shutil.copytree(photos, tmp_path/'elsewhere'))
    cfg = (d/'config.toml').read_text(encoding='utf-8').replace(str(photos), str(tmp_path/'gone'))
    (d/'config.toml').write_text(cfg, encoding='utf-8')
    log = pd.read_csv(d/'proxy_log.csv')
    log.assign(file=log.file.str.replace(str(photos), str(tmp_path/'gone'))).to_csv(d/'proxy_log.csv', index=False)
    proxy_report(str(d), json=True)
    told = json.loads(capsys.readouterr().out)
    assert told['pictures']==0 and any('give the folder that contains them now with `--images`' in o for o in told['missing'])
    split = pd.read_csv(d/'folds.csv')
    valid,train = (there/split.file[split.part==o].iloc[0] for o in ('valid','train'))
    valid.write_bytes(b'no picture')
    masked = there/Path(log.file[log.epoch==log.epoch.max()].iloc[0]).name
    masked.unlink()
    proxy_report(str(d), images=str(there), json=True)
    told = json.loads(capsys.readouterr().out)
    assert (told['pictures']==22 and any('1 images cannot be shown; the first is 0_' in o for o in told['missing'])
        and any('1 of 12 masked images' in o for o in told['missing'])), told
    assert len(tree(told['report'])('figure', class_='shot'))==22

def test_images_that_moved_with_the_run_are_found(copy_of, photos, tmp_path):
    "A project copied to another machine, images and runs together"
    (tmp_path/'project'/'runs').mkdir(parents=True)
    shutil.copytree(photos, tmp_path/'project'/'photos')
    d = copy_of('project/runs/one')
    cfg = (d/'config.toml').read_text(encoding='utf-8').replace(str(photos.parent), '/elsewhere')
    (d/'config.toml').write_text(cfg, encoding='utf-8')
    log = pd.read_csv(d/'proxy_log.csv')
    log.assign(file=log.file.str.replace(str(photos.parent), '/elsewhere')).to_csv(d/'proxy_log.csv', index=False)
    assert len(tree(report_runs(d, quiet=True))('figure', class_='shot'))==24 and 'are not at' not in words(d/'report.html')

def test_a_trained_run_brings_its_test_sets(few, tmp_path):
    "As `train_folder` keeps them: the page tells what stands in tests.csv, with folds, too"
    kw = dict(recipe='none', epochs=1, tests=f'plain={few}/plain', **(tiny|dict(size=32)))
    a = train_folder(few, tmp_path/'runs', **kw)
    b = train_folder(few/'train', tmp_path/'runs', folds=2, **(kw|dict(bs=4)))
    t = tree(report_runs(a, n=0, quiet=True))
    head,row = cells(t, 'Last epoch')
    df = pd.read_csv(a/'tests.csv').set_index('test')
    assert float(row[head.index('accuracy on plain')])==pytest.approx(df.accuracy.plain, abs=6e-4)
    one,fold,_ = open_runs([a,b])
    assert one.tests.images.plain==fold.tests.images.plain and len(one.tests.images.plain)==16, 'the same images, by their digest'

def test_two_runs_with_other_images(run, few, tmp_path):
    other = train_folder(few, tmp_path/'runs', recipe='none', epochs=1, **tiny)
    said = words(report_runs([run, other], tmp_path/'both.html', n=20, quiet=True))
    assert 'was trained on other images' in said and len(tree(tmp_path/'both.html')('figure', class_='shot'))==20

def test_two_models_of_other_splits(run, photos, tmp_path):
    "Only images that neither has trained on are validation pictures; what differs is marked"
    valid = lambda df: set(df.file[df.part=='valid'].map(lambda o: Path(o).name))
    mine = valid(pd.read_csv(run/'folds.csv'))
    seed = next(s for s in range(99) if 2<len(mine & valid(ImageTable(photos/'photos.csv', seed=s).df))<6)
    other = train_folder(photos/'photos.csv', tmp_path/'runs', recipe='none', epochs=1, seed=seed, lr=1e-4, **tiny)
    parts = [set((o:=pd.read_csv(d/'folds.csv')).file[o.part=='valid']) for d in (run,other)]
    out = report_runs([run, other], tmp_path/'both.html', quiet=True)
    t = tree(out)
    valid = [o for o in t('figure', class_='shot') if o[1]['data-part']=='validation']
    assert 0<len(valid)==len(parts[0]&parts[1])<12 and 'have different random splits' in words(out)
    assert {o[1]['data-differs'] for o in valid}<={'differ','agree'} and len(cells(t, 'Mean heatmap by predicted class')[0])==3

class Hostile:
    "A pickle that leaves a mark where it is loaded"
    def __init__(self, mark): self.mark = mark
    def __reduce__(self): return Path.touch, (self.mark,)

def test_a_hostile_model_runs_nothing(copy_of, made, tmp_path, monkeypatch, capsys):
    "The page is the same as with the real model; only who says so loads it"
    d,mark = copy_of(),tmp_path/'ran'
    (d/'model.pkl').write_bytes(pickle.dumps(Hostile(mark)))
    (d/'fold_0').mkdir()
    (d/'fold_0'/'model.pkl').write_bytes(pickle.dumps(Hostile(mark)))
    (tmp_path/'seen').mkdir()
    monkeypatch.chdir(d)
    proxy_report(str(d), out=str(tmp_path/'seen'/'report.html'), json=True)
    told = json.loads(capsys.readouterr().out)
    assert not mark.exists() and not told['missing'] and told['pictures']==24
    heats = lambda f: [o[1]['src'] for o in tree(f)('img', class_='l heat')]
    assert heats(made)==heats(told['report']) and len(heats(made))>=24
    assert len(Runs(d)) and 'test_resnet' in runs_table(d) and not mark.exists()
    proxy_report(str(d), out=str(tmp_path/'seen'/'report.html'), load_models=True, json=True)
    assert mark.exists(), 'asked for, it is loaded: the test can fail'
    assert any('is not a learner that fastai exported' in o for o in json.loads(capsys.readouterr().out)['missing'])

def test_without_weights_the_page_says_how_to_load_the_model(old_copy):
    d = old_copy()
    shutil.rmtree(d/'checkpoints')
    said = words(report_runs(d, quiet=True))
    assert ('The model of copy is not used' in said and 'There is no checkpoint' in said
        and 'If you trust the run, load its model.pkl with --load-models' in said)
    t = tree(d/'report.html')
    assert {o[1]['data-part'] for o in t('figure', class_='shot')}=={'training'} and 'Mean heatmap by predicted class' not in said
    assert 'The model of copy' not in words(report_runs(d, models=True, quiet=True))
    assert {o[1]['data-part'] for o in tree(d/'report.html')('figure', class_='shot')}=={'training','validation'}

@pytest.mark.parametrize('change,says', [
    (dict(arch='test_resnet2'), 'no architecture'), (dict(arch='resnet10t'), "do not fit the architecture 'resnet10t' for 3 classes")])
def test_weights_of_another_network_are_refused(old_copy, change, says):
    d = old_copy()
    cfg = changed(from_toml(d/'config.toml'), **change)
    (d/'config.toml').write_text(to_toml(cfg), encoding='utf-8')
    said = words(report_runs(d, quiet=True))
    assert ('Neither fastai nor timm' if 'no arch' in says else says) in said and 'The model of copy is not used' in said

def test_a_checkpoint_of_an_earlier_epoch_is_not_the_model(old_copy):
    d = old_copy()
    state = torch.load(d/'checkpoints'/'last.pth', weights_only=True)
    torch.save(state|dict(epoch=1), d/'checkpoints'/'last.pth')
    assert 'its last checkpoint is that of epoch 1 of 2' in words(report_runs(d, quiet=True))

@pytest.mark.filterwarnings('ignore::proxy_attention.core.ProxyWarning')
@pytest.mark.parametrize('kw', [
    dict(recipe='rehearsed', epochs=8, lr=1e-2), dict(recipe='none', epochs=3, prune=.5), dict(recipe='none', epochs=1, folds=2),
    dict(arch='resnet18', recipe='none', epochs=1), dict(recipe='none', epochs=1, augment='strong')],
    ids=['rehearsed','pruned','folds','fastai','strong'])
def test_kept_weights_say_what_the_exported_model_says(photos, tmp_path, kw):
    "Predictions of the network made anew, beside those of model.pkl"
    d = train_folder(photos/'photos.csv', tmp_path/'runs', export=True, **(dict(lr=5e-3)|tiny|kw))
    o, = open_runs(d)[:1]
    mine,exported = o.learner(),load_learner(o.model)
    (o.path/'model.safetensors').unlink()
    old = o.learner() # from its checkpoint
    with mine.no_bar(), exported.no_bar(), old.no_bar():
        a,b,c = (l.get_preds(dl=l.dls.test_dl(get_image_files(photos).sorted(), num_workers=0))[0] for l in (mine,exported,old))
    assert torch.equal(a, b) and torch.equal(b, c) and a.std(0).max()>0
    assert list(mine.dls.vocab)==list(old.dls.vocab)==list(exported.dls.vocab)
    if kw['recipe']=='rehearsed': assert len(o.steps), 'a successor was trained'

def test_kept_weights_of_a_pretrained_network(photos, tmp_path, monkeypatch):
    "Nothing is fetched for the report, and images are normalized as the weights want them"
    import torchvision.models as tv
    from proxy_attention.experiment.learner import config_stats
    asked = []
    def weights(*a, **kw): return asked.append(a) or tv.resnet18().state_dict()
    monkeypatch.setattr('torchvision.models._api.load_state_dict_from_url', weights)
    d = train_folder(photos/'photos.csv', tmp_path/'runs', recipe='none', epochs=1, export=True,
                     **(tiny|dict(arch='resnet18', pretrained=True)))
    assert len(asked)==1
    o, = open_runs(d)
    mine,exported = o.learner(),load_learner(o.model)
    assert len(asked)==1
    with mine.no_bar(), exported.no_bar():
        a,b = (l.get_preds(dl=l.dls.test_dl(get_image_files(photos)[:20], num_workers=0))[0] for l in (mine,exported))
    assert torch.equal(a, b)
    stats = lambda arch,**kw: config_stats(changed(Config(), arch=arch, **kw))
    assert stats('resnet18')==stats('xresnet18', pretrained=False)==imagenet_stats and stats('shufflenet_v2_x1_0') is None
    inception = stats('inception_v4')
    assert [tuple(v) for v in inception]==[(.5,.5,.5)]*2

def test_own_section_and_folds(copy_of, tmp_path):
    rep = Report(copy_of(), n=0, sections=usual_sections()|{
        'My notes':lambda rep: P(f'{len(rep.runs)} run & more'),
        'Nothing':lambda rep: None})
    out = rep.save(tmp_path/'mine.html')
    assert '1 run & more' in words(out) and 'Nothing' not in words(out) and 'Nothing' not in repr(tree(out)('a'))
    for i in (0,1): written(tmp_path/'cv'/f'fold_{i}', 1, [.5,.6+i/10])
    shutil.move(tmp_path/'cv'/'fold_0'/'config.toml', tmp_path/'cv'/'config.toml')
    t = tree(report_runs(tmp_path/'cv', quiet=True))
    assert cells(t, 'Last epoch')[1][1]=='2' and f'{.65:.3f} ± {.1/2**.5:.3f}' in cells(t, 'Last epoch')[1]

@pytest.mark.parametrize('args,kw,words', [
    (['nowhere'], {}, 'There is no run folder nowhere'),
    ([], {}, 'give at least one'),
    (['{tmp}'], {}, 'contains no run'),
    (['{run}/config.toml'], {}, 'is a file'),
    (['{run}'], dict(images='nowhere'), 'There is no folder nowhere'),
    (['{run}'], dict(out='{run}/config.toml'), 'is not overwritten'),
    (['{run}'], dict(out='{photos}/report.html'), 'nothing is ever written there'),
    (['{run}'], dict(out='{tmp}/no/report.html'), 'There is no folder'),
    (['{run}'], dict(n=-1), 'n=-1'),
    (['{run}'], dict(attribution='LayerCAMM'), "did you mean 'LayerCAM'?")])
def test_errors_are_sentences(run, photos, tmp_path, args, kw, words):
    fill = lambda o: o.format(run=run, photos=photos, tmp=tmp_path) if isinstance(o, str) else o
    with pytest.raises(CliError, match=re.escape(words)) as e:
        proxy_report(*map(fill, args), quiet=True, **{k:fill(v) for k,v in kw.items()})
    assert '\n' not in str(e.value) and not list(tmp_path.iterdir()) and not list(photos.glob('*.html'))

@pytest.mark.parametrize('out,words', [
    ('{tmp}', 'already exists and is not a report'), ('{tmp}/no/report.html', 'There is no folder'),
    ('{photos}/report.html', 'nothing is ever written there'), ('/proc/report.html', 'cannot be written to')])
def test_where_the_page_goes_is_tried_before_any_work(run, photos, tmp_path, monkeypatch, out, words):
    (tmp_path/'report.html').write_text('somebody else')
    def worked(self): raise AssertionError('a model was asked')
    monkeypatch.setattr(Report, '_look', worked)
    monkeypatch.setattr(Report, 'html', worked)
    there = set(photos.iterdir())
    with pytest.raises((OSError,ValueError), match=words): report_runs(run, out.format(tmp=tmp_path, photos=photos), quiet=True)
    assert set(photos.iterdir())==there and (tmp_path/'report.html').read_text()=='somebody else'
    with pytest.raises(AssertionError): report_runs(run, tmp_path/'good.html', quiet=True)
    assert [o.name for o in tmp_path.iterdir()]==['report.html'], 'what was tried is gone again'

def test_a_place_that_cannot_be_is_told_before_a_run_is_read(tmp_path, monkeypatch):
    def read(*_): raise AssertionError('a run was read')
    monkeypatch.setattr(build, 'Report', read)
    with pytest.raises(FileNotFoundError, match='There is no folder'): report_runs('anywhere', tmp_path/'no'/'x.html', quiet=True)

def test_full_disk_and_no_permission(run, tmp_path, monkeypatch):
    def full(path, write): raise OSError(errno.ENOSPC, 'No space left on device')
    monkeypatch.setattr(build, 'write_whole', full)
    with pytest.raises(OSError, match='cannot be written to .*No space left on device.*free some space'):
        report_runs(run, tmp_path/'x.html', n=0, quiet=True)
    monkeypatch.undo()
    (tmp_path/'x.html').write_text('<p>somebody else')
    with pytest.raises(FileExistsError): report_runs(run, tmp_path/'x.html', n=0, quiet=True)
    assert (tmp_path/'x.html').read_text()=='<p>somebody else'
    with pytest.raises(OSError, match='/proc'): report_runs(run, '/proc/x.html', n=0, quiet=True)

def test_command(run, tmp_path):
    res = warm.run(warm.script, 'proxy-report', run, '--out', tmp_path/'page.html', '--n', 6)
    assert res.returncode==0 and res.stdout.startswith(f'{tmp_path}/page.html: 1 run, 6 pictures'), res
    res = warm.run(warm.script, 'proxy-report', tmp_path/'nothing')
    assert res.returncode==2 and len(res.stderr.strip().splitlines())==1 and 'Traceback' not in res.stderr

def test_200_of_the_worst_pictures_are_under_10_MB():
    "Noise, which nothing can compress, with four models and a proxy each"
    noise = lambda s: Image.fromarray(np.random.default_rng(s).integers(0, 256, (600,800,3), dtype=np.uint8))
    photo,proxy = (len(page.photo_uri(noise(s))[0]) for s in (0,1))
    heat = max(len(page.heat_uri(torch.rand(14,14, generator=torch.Generator().manual_seed(s)))) for s in range(3))
    assert 200*(photo+proxy+5*heat+2000)<10e6, (photo,proxy,heat)

def test_moved_heat_by_hand():
    a = torch.zeros(4,4); a[0,0] = 1
    b = torch.zeros(4,4); b[3,3] = 1
    assert (heat_moved(a, a)==0 and heat_moved(a, b)==pytest.approx(1)
        and heat_moved(a, a+b)==pytest.approx(.5, abs=1e-6) and np.isnan(heat_moved(a, a*0)))
    assert heat_moved(a*7, a+b)==pytest.approx(heat_moved(a, a+b)), 'the scale does not count'

contrast = """(() => {
  const lum = c => c.map(v => (v /= 255) <= .03928 ? v/12.92 : ((v+.055)/1.055)**2.4).reduce((s, v, i) => s + v*[.2126,.7152,.0722][i], 0)
  const rgb = s => s.match(/[\\d.]+/g).map(Number)
  const under = e => {
    for (; e; e = e.parentElement) {
      const c = rgb(getComputedStyle(e).backgroundColor)
      if (c.length < 4 || c[3] > .7) return c.slice(0, 3)
    }
    return [255,255,255]
  }
  let worst = [99, '']
  for (const e of document.querySelectorAll('body *')) {
    if (![...e.childNodes].some(n => n.nodeType == 3 && n.data.trim()) || !e.checkVisibility()) continue
    const css = getComputedStyle(e), c = rgb(e.namespaceURI.endsWith('svg') ? css.fill : css.color).slice(0, 3)
    const [a, b] = [lum(c), lum(under(e))].sort((x, y) => y - x), r = (a+.05)/(b+.05)
    if (r < worst[0]) worst = [r, e.outerHTML.slice(0, 200)]
  }
  return worst
})()"""

@in_browser
def test_more_unfolds_in_a_browser(run, tmp_path, monkeypatch):
    "The choice and the order go over both boxes: the first 10 that fit stand in the open one"
    monkeypatch.setattr(sections, 'foremost', lambda shots: foremost(shots, 10))
    with Page(report_runs(run, tmp_path/'x.html', quiet=True), tmp_path) as p:
        def choose(name, v):
            p.js(f"(() => {{ const o = document.querySelector('[name={name}]'); o.value = {json.dumps(v)}; "
                 "o.dispatchEvent(new Event('input', {bubbles:true})) })()")
        def box(k): return p.js(f"[...document.querySelectorAll('#{k} > .shot')].filter(o => !o.hidden).map(o => +o.dataset.loss)")
        assert len(box('shots'))==10 and len(box('more'))==14
        choose('sort', 'loss')
        order = box('shots')+box('more')
        assert order==sorted(order, reverse=True) and len(order)==24 and len(box('shots'))==10
        choose('part', 'training')
        assert len(box('shots'))==10 and p.js("document.querySelector('#rest summary').textContent")=='2 more pictures'
        choose('label', nasty[2])
        assert p.js("document.getElementById('rest').hidden")==(len(box('shots')+box('more'))<=10)
        assert not p.said, p.said

@in_browser
def test_in_a_browser(made, tmp_path):
    with Page(made, tmp_path) as p:
        shown = lambda: p.js("[...document.querySelectorAll('.shot')].filter(o => o.checkVisibility()).map(o => ({...o.dataset}))")
        told = lambda: p.js("document.getElementById('told').textContent")
        choose = lambda name,v: p.js(
            f"(() => {{ const o = document.querySelector('[name={name}]'); o.value = {json.dumps(v)}; "
            f"o.dispatchEvent(new Event('input', {{bubbles:true}})) }})()")
        assert len(shown())==24 and told()=='24 of 24 pictures'
        assert p.js("[...document.images].every(o => o.complete && o.naturalWidth)") and p.js('document.scripts.length')==1
        for name,values in (('label',nasty[:3]),('part',['training','validation']),('right',['right','wrong'])):
            n = 0
            for v in values:
                choose(name, v)
                assert (all(o[name]==v for o in shown())
                    and told()==(f'{len(shown())} of 24 pictures' if shown() else 'No picture is like that.'))
                n += len(shown())
            assert n==24
            choose(name, '')
        for by,sign in (('moved',-1),('loss',-1),('prob',1)):
            choose('sort', by)
            v = [sign*float(o[by]) for o in shown()]
            assert v==sorted(v) and len(set(v))>1
        choose('sort', '')
        # layers of a picture that was served: by the choice for all, by click, by key
        now = lambda: p.js(
            "(() => { const s = document.querySelector('.shot[data-part=training]:has([data-n=proxy])'); "
            "return [s.querySelector('.badge').textContent, [...s.querySelectorAll('.l')].map(o => +getComputedStyle(o).opacity)] })()")
        p.js("document.head.append(Object.assign(document.createElement('style'), {textContent:'* { transition:none !important }'}))")
        assert now()==['heatmap',[.75,0,0]]
        p.js("document.querySelector('[name=heat]').value = 40; "
             "document.querySelector('[name=heat]').dispatchEvent(new Event('input', {bubbles:true}))")
        assert now()==['heatmap',[.4,0,0]]
        p.js("document.querySelector('.shot[data-part=training]:has([data-n=proxy]) button').focus()")
        for name,on in (('heatmap at the step',[0,.4,0]),('proxy',[0,0,1]),('original',[0,0,0]),('heatmap',[.4,0,0])):
            p.key('Enter', 13, '\r')
            assert now()==[name,on]
        x,y = p.js(
            "(() => { const b = document.querySelector('.shot[data-part=training]:has([data-n=proxy]) button'); "
            "b.scrollIntoView({block:'center'}); "
            "const r = b.getBoundingClientRect(); return [r.x+r.width/2, r.y+r.height/2] })()")
        p.mouse(x, y)
        assert now()==['heatmap',[0,0,0]], 'hovering hides the heatmap'
        for o in ('mousePressed','mouseReleased'): p.mouse(x, y, o, button='left', clickCount=1)
        assert now()==['heatmap at the step',[0,.4,0]]
        p.js("document.querySelectorAll('[name=show]')[3].click()")
        assert now()[0]=='proxy' and p.js("document.querySelector('.shot[data-part=validation] .badge').textContent")=='original'
        # what a screen reader is told
        p.send('Accessibility.enable')
        ax = p.send('Accessibility.getFullAXTree')['nodes']
        names = [o['name']['value'] for o in ax if o.get('role', {}).get('value')=='button' and not o.get('ignored')]
        assert sum('Label' in o and 'Maximum' in o for o in names)==24 and 'Copy' in names and all(names)
        for scheme in ('light','dark'):
            p.media(prefers_color_scheme=scheme)
            worst,where = p.js(contrast)
            assert worst>=4.5, (scheme,worst,where)
        p.media()
        p.width(390, 844)
        assert p.js('document.documentElement.scrollWidth')<=390, 'nothing to scroll sideways on a phone'
        assert len(p.pdf())>50_000
        p.media('print')
        assert p.js("!document.getElementById('filter').checkVisibility() "
                    "&& getComputedStyle(document.querySelector('.heat')).opacity")=='1'
        assert p.js("document.querySelector('.heat').style.backgroundImage.startsWith('url(\"data:')")
        assert not p.said, p.said
