-- ARGV: prefix, run, then key, spent of each purse.
for at = 3, #ARGV, 2 do raise_spent(ARGV[1], ARGV[2], ARGV[at], ARGV[at + 1]) end
return 1
