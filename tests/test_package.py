"The house: metadata, floors, notebooks and modules in step, the README and its source"
import ast, configparser, filecmp, importlib.metadata, json, re, runpy, shutil, subprocess, sys
from pathlib import Path
import pytest, tomli, yaml
from fastcore.nbio import read_nb
import proxy_attention.skill
from proxy_attention.proxy.recipes import recipe_table

root = Path(__file__).parent.parent
cfg = configparser.ConfigParser(interpolation=None)
cfg.read(root/'settings.ini', encoding='utf-8')
cfg = cfg['DEFAULT']
project = tomli.loads((root/'pyproject.toml').read_text(encoding='utf-8'))['project']
nbs = sorted(root.glob('nbs/**/*.ipynb'))
wings = ('core','data','attribution','masking','interpret','proxy','experiment','report','cli','skill','cards')
alone = ('core','cli','skill','cards') # each a module of its own, not a package
modules = [f for f in sorted((root/cfg['lib_name']).rglob('*.py')) if f.name not in ('__init__.py','_modidx.py','all.py')]
pytestmark = pytest.mark.limit(120)

def test_settings_setup_and_installed_package_agree():
    meta = importlib.metadata.metadata('proxy_attention')
    assert meta['Name'].replace('-','_')==cfg['lib_name'] and meta['Version']==cfg['version'] and meta['Summary']==project['description']
    assert meta['Requires-Python']==f">={cfg['min_python']}"
    assert set(meta.get_all('Provides-Extra'))=={'dev','multi-gpu'} 
    norm = lambda o: re.sub(r'\s', '', o)
    needs = [norm(o.split(';')[0]) for o in meta.get_all('Requires-Dist')]
    assert set(needs)=={norm(o) for k in ('requirements','dev_requirements') for o in cfg[k].split()}|{'accelerate'}
    scripts = {f'{o.name}={o.value}' for o in importlib.metadata.distribution('proxy_attention').entry_points if o.group=='console_scripts'}
    assert scripts=={o.strip() for o in cfg['console_scripts'].splitlines() if o.strip()}
    assert meta.get_all('Classifier')==cfg['classifiers'].strip().splitlines() and 'urls' not in project
    skills = [o.load() for o in importlib.metadata.distribution('proxy_attention').entry_points if o.group=='pyskills']
    assert skills==[proxy_attention.skill]

def test_setup_does_without_pkg_resources(): assert 'pkg_resources' not in (root/'setup.py').read_text(encoding='utf-8')

def test_top_level():
    tracked = subprocess.run(['git','ls-files'], cwd=root, capture_output=True, text=True)
    if tracked.returncode: pytest.skip('not a git checkout')
    top = {o.split('/')[0] for o in tracked.stdout.split()}
    assert top == {'nbs','proxy_attention','settings.ini','setup.py','tests','README.md','CONTRIBUTING.md','pyproject.toml',
        'LICENSE','.gitignore','.ci','.github','benchmarks',
        'CHANGELOG.md','CITATION.cff','CODE_OF_CONDUCT.md','SECURITY.md','MANIFEST.in'}

def place(nb):
    "The module that a notebook writes, and its place in the house: the wing, then the number of the notebook within it"
    src = json.loads(nb.read_text(encoding='utf-8'))['cells']
    name = next((m[1] for c in src if c['cell_type']=='code' and (m := re.match(r'#\| default_exp (\S+)', ''.join(c['source'])))), None)
    return name and (name, (wings.index(name.split('.')[0]), int(nb.name[:2])))

house = dict(o for o in map(place, nbs) if o)

def imports(f):
    "The modules of ours that a module imports"
    here = ('.'.join(f.relative_to(root).with_suffix('').parts)).split('.')
    for o in ast.walk(ast.parse(f.read_text(encoding='utf-8'))):
        if isinstance(o, ast.ImportFrom):
            full = '.'.join([*here[:-o.level], *([o.module] if o.module else [])]) if o.level else o.module or ''
            if full.split('.')[0]==cfg['lib_name']: yield full.removeprefix(cfg['lib_name']).lstrip('.')
        elif isinstance(o, ast.Import): yield from (a.name.partition('.')[2] for a in o.names if a.name.split('.')[0]==cfg['lib_name'])

def test_a_module_imports_only_wings_and_modules_before_it():
    names = {f:'.'.join(f.relative_to(root/cfg['lib_name']).with_suffix('').parts) for f in modules}
    assert set(names.values())==set(house)
    for f,name in names.items():
        for o in imports(f):
            assert o in house, f'{name} imports {o!r}, which is no module'
            assert house[o]<house[name], f'{name} imports {o}, which comes after it'

def test_notebooks_lie_in_the_folder_of_their_wing_in_reading_order():
    for wing in wings:
        found = [nb for nb in nbs if (o := place(nb)) and o[0].split('.')[0]==wing]
        assert found and {nb.parent.name for nb in found}=={wing if wing not in alone else 'nbs'}
        if wing not in alone: assert [nb.name[:3] for nb in found]==[f'{i:02}_' for i in range(len(found))]
        for nb in found: assert nb.stem[3:]==place(nb)[0].split('.')[-1]

def test_wings_say_what_they_are():
    for wing in set(wings)-set(alone):
        assert ast.get_docstring(ast.parse((root/cfg['lib_name']/wing/'__init__.py').read_text(encoding='utf-8')))

def sources():
    "Every piece of Python in the repository: its name and its text"
    for f in [*modules, *sorted(root.glob('tests/**/*.py')), *sorted(root.glob('benchmarks/*.py')),
              root/'setup.py', root/cfg['lib_name']/'all.py']:
        yield f.relative_to(root).as_posix(),f.read_text(encoding='utf-8')
    for nb in nbs:
        for c in json.loads(nb.read_text(encoding='utf-8'))['cells']:
            if c['cell_type']=='code': yield f"{nb.relative_to(root).as_posix()} #{c['id']}",''.join(c['source'])

def test_no_line_is_longer_than_140_characters():
    long = [f'{name}:{i} has {len(l)}' for name,src in sources() for i,l in enumerate(src.splitlines(), 1) if len(l)>140]
    assert not long, '\n'.join(long[:20])

everything = """
    AblationCAM AttentionOn AttentionRollout Augmented CAM Captum Checkpoint Comparison Grouped
    draw_boxes grouped_data grouped_table on_places place_test_sets planted read_objects show_objects SwappedAccuracy swapped_accuracy
    EigenCAM EigenGradCAM Enlarged FinerCAM GradCAM GradCAMPlusPlus HeatDrift IfCarried
    GradRollout HiResCAM ImageFolder ImageTable LayerCAM LeGrad Masker PerClass Plateau
    ProxyAttention ProxyInterpretation ProxyWarning Prune RefineCAM Report RunBoard
    ScoreCAM Smoothed Suspect Sweep XGradCAM accuracy_on check_images compare digits digits_learner digits_net
    Distance dominoes explain_images explanation_scores find_layer find_task
    find_layers heat_clusters heat_on heats_of_labels interpret_train known_sets load_best load_run no_shortcut one_colour open_images
    pitfalls probe randomised read_runs read_sweep Region
    recipes regions report_runs resume_run show_where swatches test_sets train_folder two_colours two_digits with_proxies"""

def test_what_all_brings():
    "Names that users type, each listed here, none of which takes the place of one of fastai's"
    import fastai.vision.all as fastai
    import proxy_attention.all as ours
    assert sorted(ours.__all__)==sorted(everything.split()) and len(ours.__all__)<90
    assert not {o for o in ours.__all__ if hasattr(fastai, o)}

def test_version():
    import proxy_attention
    assert proxy_attention.__version__==cfg['version']

def copy_of(tmp_path):
    for o in ('nbs','proxy_attention'):
        shutil.copytree(root/o, tmp_path/o, ignore=shutil.ignore_patterns('__pycache__','.ipynb_checkpoints'))
    for o in ('pyproject.toml','settings.ini','README.md'): shutil.copy(root/o, tmp_path)
    return tmp_path

def unchanged(tmp_path, command, folder, pattern):
    d = copy_of(tmp_path)
    res = subprocess.run([Path(sys.executable).parent/command], cwd=d, capture_output=True, text=True)
    assert res.returncode==0, res.stderr
    changed = [f.name for f in sorted((root/folder).rglob(pattern)) if not filecmp.cmp(f, d/f.relative_to(root), shallow=False)]
    assert not changed, f'`{command}` changes {changed}: run it and commit'
    assert {f.name for f in (d/folder).rglob(pattern)}=={f.name for f in (root/folder).rglob(pattern)}

def test_modules_are_in_step_with_notebooks(tmp_path): unchanged(tmp_path, 'nbdev-export', 'proxy_attention', '*.py')
def test_notebooks_are_clean(tmp_path): unchanged(tmp_path, 'nbdev-clean', 'nbs', '*.ipynb')

@pytest.mark.parametrize('f', nbs, ids=lambda f: f.relative_to(root/'nbs').with_suffix('').as_posix())
def test_notebook_keeps_its_outputs(f):
    cells = json.loads(f.read_text(encoding='utf-8'))['cells']
    shown = [o for c in cells for o in c.get('outputs', [])]
    assert not any(o['output_type']=='error' for o in shown)
    assert f.stem in ('00_core','index') or shown, 'a lesson shows something'
    assert f.stat().st_size < 600_000
    assert not re.search(r'/work/|/root/|site-packages', json.dumps(shown)), 'a path of the machine, or a library warning, is in an output'

def test_every_fault_of_the_mutants_can_still_be_made():
    "`python tests/mutants` breaks the core on purpose; its table has to follow the code"
    mutants = runpy.run_path(str(root/'tests'/'mutants'/'table.py'))['mutants']
    assert len(mutants)>=25
    for m in mutants:
        m.broken((root/cfg['lib_name']/m.file).read_text(encoding='utf-8'))
        for file,test in (o.partition('[')[0].split('::') for o in m.tests):
            assert f'def {test}(' in (root/'tests'/f'test_{file}.py').read_text(encoding='utf-8'), f'{m.what}: {file}::{test}'

def readme():
    "`index.ipynb` as Markdown: its text and its code, without outputs; its links begin at the top of the repository"
    cells = [(c.cell_type, c.source.strip()) for c in read_nb(root/'nbs'/'index.ipynb').cells]
    text = '\n\n'.join(src if kind=='markdown' else f'```python\n{src}\n```' for kind,src in cells if src and '#| hide' not in src)
    return re.sub(r'\]\((?!https?:|#)', '](nbs/', text) + '\n'

def contributing(): return (root/'CONTRIBUTING.md').read_text(encoding='utf-8')

def with_recipes(text):
    "The table of recipes as their objects say it, between its two marks"
    marks = r'(<!-- recipes: [^>]*-->\n).*?(<!-- end of recipes -->)'
    return re.sub(marks, lambda m: f'{m[1]}\n{recipe_table()}\n\n{m[2]}', text, flags=re.S)

def test_readme_is_index():
    assert (root/'README.md').read_text(encoding='utf-8')==readme(), (
        'run `python tests/test_package.py` to write README.md from nbs/index.ipynb')

def test_the_recipes_of_contributing_are_as_they_are():
    assert contributing().count(recipe_table())==1 and with_recipes(contributing())==contributing(), 'run `python tests/test_package.py`'

def test_readme_has_the_two_commands_and_is_short():
    text = readme()
    assert '\npip install . && proxy-demo\n' in text and '\npip install -e ".[dev]" && pytest\n' in text
    assert len(text.splitlines())<175 and f"*proxy_attention* {cfg['version']}, " in text
    assert not [o for code in re.findall(r'^```.*?^```', text, flags=re.S|re.M) for o in code.splitlines() if len(o)>122], 'it would be cut'

def slug(heading):
    "The anchor that GitHub and Quarto give a heading"
    return re.sub(r'[^\w\- ]', '', heading.lower()).replace(' ', '-')

def changelog(): return (root/'CHANGELOG.md').read_text(encoding='utf-8')

@pytest.mark.parametrize('text', [readme, contributing, changelog], ids=['README','CONTRIBUTING','CHANGELOG'])
def test_links_lead_somewhere(text):
    text = re.sub(r'^```.*?^```', '', text(), flags=re.S|re.M)
    anchors = {slug(o) for o in re.findall(r'^#+ (.+)$', text, re.M)}
    links = [o for o in re.findall(r'\]\(([^)]+)\)', text) if not o.startswith('https://')]
    assert links and not [o for o in links if not (o[1:] in anchors if o[0]=='#' else (root/o).is_file())]

def test_the_map_of_contributing_has_every_module():
    rows = re.findall(r'^\| `(\w+)` \|[^|]*\|([^|]*)\|$', contributing().partition('## The map')[2], re.M)
    assert [o for o,_ in rows]==list(wings)
    mapped = [f'{wing}.{o}' if o else wing for wing,of in rows for o in re.findall(r'`(\w+)`', of) or ['']]
    assert mapped==[name for name,_ in sorted(house.items(), key=lambda o: o[1])], 'the map has other modules, or in another order'

# ---- for programs that read, and for those who publish

def llms_ctx():
    "`llms.txt`, which nbdev writes, with what it points to: the README, and the docstrings of its modules"
    head = (root/'nbs'/'llms.txt').read_text(encoding='utf-8').partition('## Modules')
    named = re.findall(r'^- `([^`]+)`', head[2], re.M)
    docs = [('README',readme()), *((o,importlib.import_module(o).__doc__) for o in named)]
    each = '\n'.join(f'<doc title="{k}">\n{v.strip()}\n</doc>' for k,v in docs)
    return f'<project title="proxy_attention" summary="{project["description"]}">\n<docs>\n{each}\n</docs>\n</project>\n'

def test_what_an_assistant_reads():
    assert (root/'nbs'/'llms-ctx.txt').read_text(encoding='utf-8')==llms_ctx(), 'run `python tests/test_package.py`'
    text = (root/'nbs'/'llms.txt').read_text(encoding='utf-8')
    assert f'> {project["description"]}' in text and '`proxy_attention.skill`' in text
    _,front,body = proxy_attention.skill.skill_md().split('---\n', 2)
    assert {*yaml.safe_load(front)}=={'name','description'} and 'probe(learn)' in body

def test_the_source_distribution_can_be_installed(tmp_path):
    "It has all that its own setup.py reads, which is not so without MANIFEST.in"
    (tmp_path/'tree').mkdir()
    d = copy_of(tmp_path/'tree')
    for o in ('setup.py','MANIFEST.in','LICENSE'): shutil.copy(root/o, d)
    def setup(*args, cwd):
        return subprocess.run([sys.executable,'setup.py',*args], cwd=cwd, capture_output=True, text=True, check=True).stdout
    setup('-q', 'sdist', '-d', str(tmp_path/'dist'), cwd=d)
    packed, = (tmp_path/'dist').iterdir()
    shutil.unpack_archive(packed, tmp_path/'there')
    there, = (tmp_path/'there').iterdir()
    assert setup('--version', cwd=there).strip().endswith(cfg['version'])
    assert {'report.css','page.js'}<={f.name for f in there.rglob('*')}

def test_citation_and_changelog_know_the_version():
    cff = yaml.safe_load((root/'CITATION.cff').read_text(encoding='utf-8'))
    assert (cff['version'],cff['license'],cff['abstract'])==(cfg['version'],cfg['license'],project['description'])
    assert re.search(r'^## (\S+)', (root/'CHANGELOG.md').read_text(encoding='utf-8'), re.M)[1]==cfg['version']

def test_workflows_and_templates():
    found = {f.name:yaml.safe_load(f.read_text(encoding='utf-8')) for f in (root/'.github').rglob('*.yml')}
    matrix = found['test.yml']['jobs']['test']['strategy']['matrix']
    assert matrix==dict(os=['ubuntu-latest','macos-latest'], python=['3.10','3.12','3.13']) and matrix['python'][0]==cfg['min_python']
    assert [o['run'] for o in found['test.yml']['jobs']['test']['steps'] if 'run' in o]==['pip install -e ".[dev]"','pytest','codespell']
    assert found['deploy.yml']['jobs']['deploy']['needs']=='build'
    assert all({'name','description','body'}<=set(o) for k,o in found.items() if k in ('bug.yml','idea.yml','result.yml'))

def write_readme():
    "README.md from `index.ipynb`, the table of recipes into CONTRIBUTING.md, and llms-ctx.txt from llms.txt"
    (root/'README.md').write_text(readme(), encoding='utf-8')
    (root/'CONTRIBUTING.md').write_text(with_recipes(contributing()), encoding='utf-8')
    (root/'nbs'/'llms-ctx.txt').write_text(llms_ctx(), encoding='utf-8')

if __name__=='__main__': write_readme()
