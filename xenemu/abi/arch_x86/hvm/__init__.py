"""Header: public/arch-x86/hvm/"""
