"What a person meets when asking for help: docstrings, objects as Jupyter shows them, and pages that nbdev can make"
import ast, dataclasses, importlib, inspect, json, pkgutil, re, shutil, warnings
from html.parser import HTMLParser
from pathlib import Path
import pandas as pd, pytest, torch, warm, yaml
from fastcore.docments import docments
from test_package import slug
from plain_english import found, lines_of, patterns
from fastai.vision.all import *
import proxy_attention
from proxy_attention.all import *
from proxy_attention.attribution.cams import fuses
from proxy_attention.attribution.heatmap import HeatmapStore
from proxy_attention.attribution.methods import as_attribution
from proxy_attention.masking.fills import fills
from proxy_attention.masking.labels import labelings
from proxy_attention.masking.rules import rules
from proxy_attention.interpret.metrics import mask_metrics, model_metrics
from proxy_attention.interpret.probe import Probe, donors
from proxy_attention.proxy.selection import selections
from proxy_attention.experiment.arms import arms
from proxy_attention.experiment.prune import ramps
from proxy_attention.experiment.sweep import samplers
from proxy_attention.core import as_html

root = Path(__file__).parent.parent
nbs = sorted(root.glob('nbs/**/*.ipynb'))

# ---- docstrings

def ours(o): return str(getattr(o, '__module__', '')).startswith('proxy_attention')
contracts = set( # explained once, where strategies are
    'losses preds targs share heat grid img mask other data rng f x y xb yb out act model '
    'learn epochs lr seed epoch n_epoch target layer'.split())
strategies = {o for d in (rules, fills, selections, mask_metrics, model_metrics, arms, donors, ramps, samplers, fuses, labelings)
              for o in d.values()}

def public():
    "Name and object of what the modules call public, and of what is added to fastai's `Learner`"
    for m in pkgutil.walk_packages(proxy_attention.__path__, 'proxy_attention.'):
        mod = importlib.import_module(m.name)
        for k in getattr(mod, '__all__', ()):
            o = getattr(mod, k)
            if o.__class__ is not dict and ours(o) and o.__module__==m.name and (inspect.isfunction(o) or inspect.isclass(o)): yield k,o
    for k,o in vars(Learner).items():
        if inspect.isfunction(o) and ours(o): yield f'Learner.{k}',o

def methods(cls):
    for k,o in vars(cls).items():
        o = o.__func__ if isinstance(o, (classmethod,staticmethod)) else o.fget if isinstance(o, property) else o
        if not k.startswith('_') and inspect.isfunction(o) and ours(o) and not isevent(cls, k): yield k,o

def isevent(cls, k):
    "Does fastai call the method, and say itself when?"
    return issubclass(cls, Callback) and k in vars(event)

def undocumented(f):
    "Parameters that neither a comment nor a type says anything about"
    docs,code = docments(f),inspect.unwrap(f).__code__
    own = code.co_varnames[:code.co_argcount+code.co_kwonlyargcount]
    return [k for k,p in inspect.signature(f).parameters.items()
        if k in own and k not in contracts|{'self','cls'} and not docs.get(k) and p.annotation is p.empty]

def test_everything_public_has_a_docstring():
    bare = ([k for k,o in public() if not inspect.getdoc(o)]
        + [f'{k}.{n}' for k,o in public() if inspect.isclass(o) for n,m in methods(o) if not inspect.getdoc(m)])
    assert not bare, f'no docstring: {bare}'

def test_parameters_of_functions_and_constructors_are_explained():
    bare = {}
    for k,o in public():
        elsewhere = re.search('Arguments as for|The arguments are those of', o.__doc__ or '')
        if o in strategies or elsewhere or dataclasses.is_dataclass(o): continue
        if inspect.isclass(o) and '__init__' not in vars(o): continue
        if more := undocumented(o.__init__ if inspect.isclass(o) else o): bare[k] = more
    assert not bare, f'neither comment nor type: {bare}'

def test_the_two_rules_can_fail():
    def f(a, b:int, c # explained
    ): pass
    assert undocumented(f)==['a']
    assert len(list(public()))>200 and 'Learner.fit_proxy' in dict(public()) and 'plot_drift' in dict(methods(ProxyInterpretation))

# ---- plain English

pages = [*sorted(root.glob('*.md')), *nbs]

@pytest.mark.parametrize('f', pages, ids=lambda f: f.relative_to(root).as_posix())
def test_plain_english(f):
    "No riddles in pages, docstrings, docments, which are the help lines too, and errors; `plain_english.py` has the list"
    bad = [f'{f.relative_to(root)}:{at} {words!r} → {instead}' for at,line in lines_of(f) for words,instead in found(line)]
    assert not bad, '\n'+'\n'.join(bad)

def test_each_pattern_finds_its_example_and_not_its_replacement():
    for pattern,instead,example in patterns:
        assert re.search(pattern, example), f'{pattern} does not find {example!r}'
        assert not found(instead), instead

def test_docments_strings_and_pages_are_read(tmp_path):
    (tmp_path/'page.md').write_text('Good.\nThere are: two')
    nb = dict(cells=[dict(id='1', cell_type='markdown', source=['What is found by itself']),
        dict(id='2', cell_type='code',
             source=['%matplotlib inline\n', 'x = f"{1}: predicted otherwise" # At most so many\n', 'found_by_itself = 1'])])
    (tmp_path/'nb.ipynb').write_text(json.dumps(nb))
    assert [(at,*o) for f in ('page.md','nb.ipynb') for at,l in lines_of(tmp_path/f) for o in found(l)]==[
        (2,'There are: ','Available: …'), ('1:1','found by itself','auto-detected'),
        ('2:2','predicted otherwise','misclassified, predicted as another class'), ('2:2','At most so many','the maximum number of')]

# ---- objects as Jupyter shows them

class Parsed(HTMLParser):
    "Tags that are opened and closed, and the text between"
    def __init__(self, html):
        super().__init__()
        self.open,self.seen,self.text = [],[],''
        self.feed(html)
        assert not self.open, f'not closed: {self.open}'
    def handle_starttag(self, tag, attrs): 
        self.seen.append(tag)
        if tag not in ('br','img','hr'): self.open.append(tag)
    def handle_endtag(self, tag): assert self.open.pop()==tag
    def handle_data(self, data): self.text += data

def shown(o, most=6000):
    html,text = o._repr_html_(),repr(o)
    assert len(html)<most and not any(o in text for o in ('<table','<p>','</')), 'a terminal gets plain text'
    return Parsed(html).text

def test_as_html_escapes():
    p = Parsed(as_html('<b>', {'<i>x':'a & <script>', 'gone':None}, pd.DataFrame({'<u>':['<s>']})))
    assert not {'script','u','s'} & set(p.seen) and '<script>' in p.text and '<u>' in p.text and '<s>' in p.text and 'gone' not in p.text
    assert Parsed(as_html('alone')).seen==['p','b']

def test_store(): 
    text = shown(HeatmapStore(range(0, 40, 2), torch.rand(20,7,7)))
    assert '20 items' in text and '7×7' in text and '0, 2, 4' in text and '…' in text
    assert '0 items' in shown(HeatmapStore()) and '1 item' in shown(HeatmapStore([3], torch.rand(1,2,2)))

def test_explainers():
    model = digits_net()
    cam = GradCAM(model, target='margin')
    text = shown(cam)
    assert 'Selvaraju' in text and 'margin of the pred' in text and '7×7' not in text
    cam(torch.rand(2,3,28,28))
    assert '7×7' in shown(cam)
    assert ('no class' in shown(EigenCAM(model)) and 'Saliency' in repr(as_attribution('Saliency')(model))
        and shown(as_attribution('Saliency')(model)))

def test_callback(few, quiet):
    pa = ProxyAttention(steps=[1,'p',1], share=8)
    text = shown(pa)
    assert "ProxyAttention(share=8, steps=[1, 'p', 1])" in text and 'no proxy step yet' in text and 'LayerCAM' in text
    quiet(digits_learner(few), 'fit', 2, 1e-3, cbs=pa)
    text = shown(pa)
    assert ('1 proxy step; 8 items served' in text and 'Masker(area_budget, swap' in text
        and 'LayerCAM of the margin' in text and 'mean_loss' in text)
    def my_rule(heat): return heat>.5
    assert 'my_rule' in shown(ProxyAttention(rule=my_rule))

def test_comparison_and_probe():
    df = pd.DataFrame([dict(arm=a, seed=s, test='<t>', accuracy=.5+(.1+.01*s)*(a!='no proxy'), worst=.1, steps=5)
        for a in ('no proxy','<i>mine') for s in range(5)])
    text = shown(Comparison(df))
    assert '<i>mine' in text and '<t>' in text and 'helps' in text # as text, not as markup
    heat = torch.rand(60,4,4)
    p = Probe(heat, torch.arange(60)%2,
        pd.DataFrame([[.1,1.,.9,.2,.1,.8]], index=pd.Index([.1], name='area'),
            columns='masked changes follows random_changes random_follows carried'.split()),
        ['<cat>','dog'], '<imgs>')
    text = Parsed(p._repr_html_()).text
    assert '<imgs>' in text and '90%' in text

def test_attention_on():
    assert (repr(AttentionOn(lambda items: None, n=9))
            =='AttentionOn: on object, energy of LayerCAM or LeGrad or GradRollout, at most 9 items'
        and repr(AttentionOn(lambda items: None, n=None)).endswith('all items'))

def test_interpretation(trained):
    assert (repr(ProxyInterpretation.from_learner(trained, attribution='GradCAM'))
        =='ProxyInterpretation of 360 images, mean loss {:.3f}; heat: GradCAM of the margin of the pred'.format(
            float(ProxyInterpretation.from_learner(trained).losses.mean())))

# ---- the site

def code_cells(f): return [''.join(c['source']) for c in json.loads(f.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='code']

@pytest.mark.parametrize('f', [f for f in nbs if any('default_exp' in o for o in code_cells(f))],
    ids=lambda f: f.relative_to(root/'nbs').with_suffix('').as_posix())
def test_imports_stand_in_cells_of_their_own(f):
    "nbdev runs every cell that imports something, and no other, when it makes a page"
    for src in code_cells(f):
        if re.match(r'#\| *(export|hide)', src): continue
        kinds = {isinstance(o, (ast.Import,ast.ImportFrom)) for o in ast.parse(src).body}
        assert len(kinds)<2, src

def test_every_notebook_is_in_the_sidebar_once():
    def pages(o): return [o] if isinstance(o, str) else [p for e in o['contents'] for p in pages(e)]
    there = pages(yaml.safe_load((root/'nbs'/'sidebar.yml').read_text(encoding='utf-8'))['website']['sidebar'])
    assert sorted(there)==sorted(f.relative_to(root/'nbs').as_posix() for f in nbs)

def markdown_of(f):
    return [''.join(c['source']) for c in json.loads(f.read_text(encoding='utf-8'))['cells'] if c['cell_type']=='markdown']

@pytest.mark.parametrize('f', nbs, ids=lambda f: f.relative_to(root/'nbs').with_suffix('').as_posix())
def test_every_page_has_a_title_and_a_description(f):
    "One line each, in a cell of their own: Quarto shows the second below the first, and nbdev drops what else is in that cell"
    title,_,about = markdown_of(f)[0].strip().split('\n')
    assert re.fullmatch(r'# \S.*', title) and re.fullmatch(r'> \S.{10,}', about), (title,about)

def broken_links(f, base):
    "Links of a page that lead to no file, or to no heading of one"
    bad = []
    for text in markdown_of(f):
        for to in re.findall(r'\]\(([^)\s]+)\)', re.sub(r'^```.*?^```|`[^`]*`', '', text, flags=re.S|re.M)):
            if re.match(r'https?:|mailto:', to): continue
            there,_,anchor = to.partition('#')
            page = (f.parent/there).resolve() if there else f
            inside = page.is_file() and page.is_relative_to(base)
            if not inside: bad.append(to)
            elif anchor and anchor not in {slug(o) for t in markdown_of(page) for o in re.findall(r'^#+ (.+)$', t, re.M)}: bad.append(to)
    return bad

@pytest.mark.parametrize('f', nbs, ids=lambda f: f.relative_to(root/'nbs').with_suffix('').as_posix())
def test_links_between_pages_lead_somewhere(f): assert not broken_links(f, root/'nbs')

def test_a_broken_link_is_found(tmp_path):
    def page(name, *cells):
        (tmp_path/name).write_text(json.dumps(dict(cells=[dict(cell_type='markdown', source=[o]) for o in cells])))
        return tmp_path/name
    page('b.ipynb', '# b', '## Two words, and more')
    f = page('a.ipynb', '[ok](b.ipynb) [ok](b.ipynb#two-words-and-more) [ok](https://x.y) `[no link](z)`',
             '[1](c.ipynb) [2](b.ipynb#three) [3](../d.md)')
    assert broken_links(f, tmp_path)==['c.ipynb','b.ipynb#three','../d.md']

def make_pages(folder, names):
    "nbdev's own step before Quarto, on some notebooks, in a copy"
    warnings.simplefilter('ignore')
    os.chdir(folder)
    from nbdev.quarto import nbdev_sidebar, refresh_quarto_yml
    from nbdev.serve import proc_nbs
    refresh_quarto_yml()
    nbdev_sidebar.__wrapped__()
    proc_nbs(str(folder/'nbs'), n_workers=0, force=True, file_re='|'.join(f'^{o}$' for o in names))

@pytest.mark.limit(200)
def test_nbdev_makes_the_pages(tmp_path):
    "All of them but those whose processing means running a whole room: of these one, with patched methods"
    for o in ('nbs','proxy_attention'):
        shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__','.ipynb_checkpoints'))
    shutil.copy(root/'pyproject.toml', tmp_path)
    names = [f.name for f in nbs if f.stem=='01_interpretation' or not any('default_exp' in o for o in code_cells(f))]
    res = warm.run(make_pages, tmp_path, names, cwd=tmp_path, env=dict(PYTHONPATH=str(root)), timeout=190)
    assert res.returncode==0, res.stderr[-3000:]
    made = {f.name for f in (tmp_path/'_proc').rglob('*.ipynb')}
    assert made==set(names) and {'index.ipynb','quickstart.ipynb','cheating.ipynb','own_strategy.ipynb'}<=made
    for o in ('nbdev.yml','_quarto.yml','sidebar.yml'):
        assert (tmp_path/'nbs'/o).read_text()==(root/'nbs'/o).read_text(), f'nbdev writes another {o}'
    page = '\n'.join(
        ''.join(o.get('text', [])) + ''.join(o.get('data', {}).get('text/markdown', []))
        for c in json.loads((tmp_path/'_proc'/'interpret'/'01_interpretation.ipynb').read_text())['cells']
        for o in c.get('outputs', []))
    for o in ('ProxyInterpretation.plot_top_losses','HeatDrift.moved','Show the largest losses? Otherwise the smallest'): assert o in page
