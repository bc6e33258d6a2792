"Words that have to be true: letters in pictures, what a misspelt name is answered with, short fits, heat of few cells"
import functools, re
import matplotlib, pytest
from matplotlib import font_manager, rcParams
from fastai.vision.all import *
from proxy_attention.all import *
from proxy_attention import core
from proxy_attention.core import called, fonts_for, legible, nearest, warn_of_letters
from proxy_attention.attribution.methods import Suspect
from proxy_attention.experiment.arms import find_arm
from proxy_attention.interpret import use
from proxy_attention.interpret.heats import plot_class_heat, show_grid
from proxy_attention.masking.masker import Masker
from proxy_attention.proxy.schedule import Plateau

nowhere = '\U0010fff0' # for private use: no font has it

@pytest.fixture
def few_fonts(monkeypatch):
    "Only the fonts that come with matplotlib, as on a bare machine; one of today's draws a box for every letter there is"
    files = sorted((Path(matplotlib.get_data_path())/'fonts'/'ttf').glob('*.ttf'))
    own = [font_manager.ttfFontProperty(font_manager.get_font(o)) for o in files]
    monkeypatch.setattr(font_manager.fontManager, 'ttflist', own)

def lacking():
    "A letter that the usual font lacks and another one has, and the name of that"
    usual = core._letters(font_manager.findfont('DejaVu Sans'))
    return next((c,k) for k,f in sorted(core._installed().items()) for c in sorted(core._letters(f)-usual) if c.isalpha())

def test_a_letter_comes_from_another_font_that_is_installed(few_fonts, recwarn):
    letter,name = lacking()
    before = rcParams.copy()
    fig,ax = plt.subplots()
    title = ax.set_title(f'class {letter}')
    legible(title)
    assert title.get_text()==f'class {letter}' and title.get_fontfamily()[0]==rcParams['font.family'][0]
    assert letter in set().union(*(core._letters(core._installed()[o]) for o in title.get_fontfamily()[1:]))
    fig.canvas.draw()
    assert not [o for o in recwarn if 'Glyph' in str(o.message)] and rcParams==before
    plain = ax.text(0, 0, 'naïve é')
    legible(plain)
    assert plain.get_fontfamily()==rcParams['font.family'] and plain.get_text()=='naïve é'

def test_a_letter_that_no_font_has_is_its_code_point(few_fonts, recwarn):
    fig,ax = plt.subplots()
    drawn = [ax.set_title('猫 cat'), ax.text(0, 0, f'{nowhere} é')]
    with pytest.warns(ProxyWarning, match='No installed font has the letters of some names.*Noto') as said: legible(*drawn)
    assert len(said)==1 and [o.get_text() for o in drawn]==[r'\u732b cat', r'\U0010fff0 é']
    fig.canvas.draw()
    assert not [o for o in recwarn if 'Glyph' in str(o.message)], 'no box is drawn'
    assert fonts_for('plain')==(list(rcParams['font.family']), set())

def test_it_is_said_once_for_many_pictures(few_fonts):
    img = Image.new('RGB', (8,8))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('default')
        for _ in range(3):
            axs = show_grid([[(img,None,'猫'),(img,None,'犬')], [(img,None),(img,None)]], titles=['鳥','a'], captions=['x','y'])
            maps = plot_class_heat(torch.rand(2,4,4), ['猫','b'], [3,4])
            plt.gcf().canvas.draw()
            show_grid([[(img,None)]], captions=['猫'])
    assert len([o for o in said if issubclass(o.category, ProxyWarning)])==1 and not [o for o in said if 'Glyph' in str(o.message)]
    assert axs[0,0].get_title()==r'\u732b' and axs[0,0].texts[0].get_text()==r'\u9ce5' and maps[0].get_title()==r'\u732b (3)'

def test_a_broken_font_file_has_no_letters(tmp_path):
    (tmp_path/'x.ttf').write_bytes(b'no font')
    assert core._letters(str(tmp_path/'x.ttf'))==core._letters(str(tmp_path/'gone.ttf'))==frozenset()

def test_explained_images_say_it_once(few_fonts, tmp_path, trained, few, monkeypatch):
    learn = trained
    files = get_image_files(few)[:2].sorted()
    (tmp_path/'photos').mkdir()
    for f,name in zip(files, ('猫.png','犬.png')): shutil.copy(f, tmp_path/'photos'/name)
    titles = []
    monkeypatch.setattr(use, 'legible', lambda *o, **kw: (legible(*o, **kw), titles.extend(x.get_text() for x in o)))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        table = explain_images(learn, tmp_path/'photos', out=tmp_path/'runs', quiet=True).table
    assert len([o for o in said if issubclass(o.category, ProxyWarning)])==1 and not [o for o in said if 'Glyph' in str(o.message)]
    assert {r'\u732b.png',r'\u72ac.png'}<=set(titles) and sorted(Path(o).name for o in table.file)==['犬.png','猫.png']

@pytest.mark.parametrize('name,choices,near', [
    ('shar', ['area','share','mean_share'], 'share'), ('shar', ['area'], None), ('acc', ['loss','accuracy'], 'accuracy'),
    ('val', ['valid_loss','val'], 'val'), ('SWOP', ['zero','Swap'], 'Swap'), ('', ['zero'], None), ('xyz', ['zero','mean'], None),
    ('afr', ['no proxy','last layer, afr'], 'last layer, afr')])
def test_nearness(name, choices, near):
    for o in (choices, choices[::-1]): assert nearest(name, o)==(f", did you mean '{near}'?" if near else '.')

def test_names_with_commas_are_told_apart():
    with pytest.raises(ValueError, match='one cycle, random erasing; last layer, proxies;'): find_arm('nothing of the kind')

def test_a_setting_cut_short_is_known_by_its_beginning():
    for make in (ProxyAttention, ProxyAttention.shortcut, ProxyAttention.background):
        with pytest.raises(TypeError, match='takes no `shar`, did you mean .share.'): make(shar=.5)
    with pytest.raises(TypeError) as e: Masker(shar=.5)
    assert "did you mean" not in str(e.value), 'an area is another thing than a share'

class Silent:
    "A schedule that says nothing of itself"
    def __call__(self, epoch, n_epoch): return False

def test_no_message_has_an_address():
    def mine(epoch, n_epoch): return False
    assert [called(o) for o in (mine, functools.partial(mine, n_epoch=1), Silent(), Silent, len, 'zero')]==[
        'mine','mine','Silent','Silent','len','zero']

@pytest.mark.parametrize('cb', [None, ProxyAttention.shortcut, lambda: ProxyAttention(steps=lambda e,n: False),
    lambda: ProxyAttention(steps=Silent()), lambda: ProxyAttention(steps=Plateau())])
@pytest.mark.parametrize('how', ['fit_proxy','fine_tune_proxy'])
def test_a_fit_of_one_epoch_has_no_room_for_a_step(few, quiet, weights, same, cb, how):
    learn = digits_learner(few, cbs=cb and cb())
    before = weights(learn)
    with pytest.raises(ValueError, match='^A fit of 1 epoch is too short for a proxy step, because nothing would be trained on its result'):
        quiet(learn, how, 1)
    assert same(weights(learn), before) and hasattr(learn, 'proxy_attention')==(cb is not None), 'it is said before anything is done'

def test_a_schedule_without_a_step_is_named(few, quiet):
    learn = digits_learner(few, cbs=ProxyAttention(steps=Silent()))
    with pytest.raises(ValueError, match=r'A fit of 3 epochs has no proxy step with this schedule \(Silent\)'): quiet(learn, 'fit_proxy', 3)
    with pytest.warns(ProxyWarning, match=r'ends with a proxy step \(Silent, 2 epochs\)'): quiet(learn, 'fit', 2)

def test_fine_tune_says_that_its_second_phase_has_the_step(few, quiet):
    learn = digits_learner(few, cbs=ProxyAttention.shortcut())
    with pytest.warns(ProxyWarning) as said: quiet(learn, 'fine_tune', 2)
    text = '\n'.join(str(o.message) for o in said if issubclass(o.category, ProxyWarning))
    assert 'this fit trains as without ProxyAttention' in text and '1 epoch)' in text
    assert 'The next fit, such as the second phase of `fine_tune`, follows the schedule from its beginning.' in text
    assert len(learn.proxy_attention.history)==1 and learn.proxy_attention.history.fit[0]==2, 'and it does'

def test_one_schedule_over_fits_has_no_next_one(few, quiet):
    learn = digits_learner(few, cbs=ProxyAttention(steps=Silent(), across=3))
    with pytest.warns(ProxyWarning) as said: quiet(learn, 'fine_tune', 2)
    assert not any('The next fit' in str(o.message) for o in said)

def coarse(n):
    "An attribution of n×n cells"
    def heat(xb, yb): return torch.rand(len(xb), n, n, generator=torch.Generator().manual_seed(0))
    return heat

def said_of_cells(few, quiet, n_epoch=3, **kw):
    learn = digits_learner(few, cbs=ProxyAttention(start=1, p=1., **kw))
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter('always')
        quiet(learn, 'fit', n_epoch, 1e-3)
    return learn,[str(o.message) for o in said if 'cells' in str(o.message)]

def test_heat_of_few_cells_is_told_once_a_fit(few, quiet):
    learn,said = said_of_cells(few, quiet, 4, attribution=coarse(3))
    assert len(learn.proxy_attention.history)==3 and said==[
        'The heatmaps have 3×3 cells, and a mask cannot be placed more precisely than that: train on larger images (`size`), '
        'give an earlier `layer`, or take finer heat: `attribution=RefineCAM` (several layers), or `Enlarged` '
        '(larger images for the heat only; for a suspect, `Suspect(learn, size=…)`).']
    with pytest.warns(ProxyWarning, match='3×3 cells'): quiet(learn, 'fit', 2, 1e-3)

@pytest.mark.parametrize('kw,told', [
    (dict(attribution=coarse(5)), True), (dict(attribution=coarse(6)), False), ({}, False),
    (dict(attribution=coarse(3), rule='rest'), True), (dict(attribution=coarse(3), rule='top_cells'), True),
    (dict(attribution=coarse(3), rule=lambda heat: heat>.5), True), (dict(attribution=coarse(3), rule=lambda heat: heat>2), False),
    *((dict(attribution=coarse(3), rule=o), False) for o in ('border','everything','random','centre'))])
def test_it_is_told_where_heat_says_the_place(few, quiet, kw, told):
    "Not of a grid that is fine enough, a rule that does not ask the heat, or a step that masks nothing"
    learn,said = said_of_cells(few, quiet, 2, **kw)
    assert bool(said)==told and len(learn.proxy_attention.history)==1

def test_a_suspect_that_sees_the_images_larger_is_the_way_out(few, quiet):
    torch.manual_seed(0)
    deep = nn.Sequential(ConvLayer(3, 8, stride=2), ConvLayer(8, 8, stride=4), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))
    for size,cells in ((None,'4×4'),(56,None)):
        _,said = said_of_cells(few, quiet, 2, attribution=Suspect(deep, size=size), layer='1')
        assert [cells in o for o in said]==[True]*(cells is not None), (size,said)
